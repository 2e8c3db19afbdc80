"use strict";
// The form: what is asked for.

const NUMBERS = ["duration", "seed", "temperature", "top_k", "top_p", "cfg_coef"];

let plan = []; // changes that the next clip has from the beginning: its schedule

const planned = ({ seconds, ...changes }) => `${clock(seconds)} ${inWords(changes)}`;

function setPlan(schedule) {
  plan = schedule;
  $("plan").hidden = !plan.length;
  const lines = plan.map(({ seconds, ...changes }, i) => sceneLine(clock(seconds), inWords(changes), i + 1));
  $("plan").querySelector(".scenes").replaceChildren(...lines);
}

// The schedule of a link: objects, or pairs of seconds and a text, as the server takes them.
function scheduleOf(text) {
  try {
    const found = JSON.parse(text).map((cue) => (Array.isArray(cue) ? { seconds: cue[0], prompt: cue[1] } : cue));
    if (found.every((cue) => Number.isFinite(cue.seconds))) return found;
  } catch {
    // It says so below.
  }
  $("error").textContent = "The changes in this link cannot be read: the clip will be made without them.";
  return [];
}

function setEndless(on) {
  $("endless").setAttribute("aria-pressed", on);
  $("endless-hint").hidden = !on;
  $("duration").disabled = $("variations").disabled = on;
  if (on) $("variations").value = "1";
}
const isEndless = () => $("endless").getAttribute("aria-pressed") === "true";

function read() {
  const settings = { prompt: $("prompt").value.trim() || null };
  const negative = $("negative_prompt").value.trim();
  if (negative) settings.negative_prompt = negative;
  for (const name of NUMBERS) settings[name] = $(name).valueAsNumber;
  if (isEndless()) {
    delete settings.duration;
    settings.endless = true;
  }
  if (plan.length) settings.schedule = plan;
  return settings;
}

function fill(settings) {
  if (["prompt", "negative_prompt", "schedule"].some((name) => name in settings)) {
    $("prompt").value = settings.prompt ?? "";
    $("negative_prompt").value = settings.negative_prompt ?? "";
    setPlan(typeof settings.schedule === "string" ? scheduleOf(settings.schedule) : (settings.schedule ?? []));
  }
  if ("duration" in settings || "endless" in settings) setEndless(String(settings.endless) === "true");
  for (const name of NUMBERS) if (Number.isFinite(+settings[name])) $(name).value = settings[name];
  const usual = (name) => +$(name).value === about.defaults[name];
  if ($("negative_prompt").value || !["temperature", "top_k", "top_p", "cfg_coef"].every(usual)) $("more").open = true;
}

function fragment(settings) {
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
  const pairs = Object.entries(settings).filter(([, value]) => value !== null).map(([name, value]) => [name, text(value)]);
  return new URLSearchParams(pairs).toString();
}

function working() {
  const open = clips.filter((clip) => !clip.end);
  const busy = open.length > 0;
  open.forEach((clip) => clip.card.refresh());
  $("stop").disabled = !busy;
  document.title = busy ? "Making music … musicgen-jax" : "musicgen-jax";
}

let waiting = false; // for a sound that is still being read

async function make() {
  if (waiting) return;
  const wrong = document.querySelector("#make :invalid");
  if (wrong?.closest("details")) wrong.closest("details").open = true;
  if (!$("make").reportValidity()) return;
  $("error").textContent = "";
  sounds.forEach((sound) => sound.hush());
  player.wake(about.sample_rate);
  waiting = true;
  if (sounds.some(({ reading }) => reading)) say("Waiting for the sound to be read.");
  try {
    if (!(await allRead())) return; // and the sound says why
  } finally {
    waiting = false;
  }
  const settings = read();
  const given = sounds.map((sound) => sound.sent()).filter(Boolean);
  const beginning = sounds.find(({ kind, samples }) => kind === "continue_from" && samples);
  if (beginning && settings.duration <= beginning.seconds) {
    $("error").textContent = `The beginning lasts ${short(beginning.seconds)} of the ${settings.duration} seconds: ask for more seconds, or cut it shorter.`;
    $("duration").focus();
    return;
  }
  history.replaceState(null, "", `#${fragment(settings)}`);
  const made = [];
  const now = Date.now();
  const count = +$("variations").value;
  for (let i = 0; i < count; i++) {
    const seed = (settings.seed + i) % (about.max_seed + 1);
    const clip = new Clip({ ...settings, seed }, { several: count > 1, given });
    clip.created = now - i; // the first one is on top
    put(clip);
    made.push(clip);
  }
  player.play(made[0], Math.max(0, made[0].lead + Math.round(((beginning?.seconds ?? 0) - 3) * about.sample_rate)));
  for (const clip of made) clip.make();
  working();
  say("Making music.");
  made[0].card.node.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

$("make").onsubmit = (event) => (event.preventDefault(), make());
$("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), make();
};
$("no-plan").onclick = () => (setPlan([]), $("prompt").focus());
$("endless").onclick = () => setEndless(!isEndless());
$("dice").onclick = () => (($("seed").value = newSeed()), say(`Seed ${$("seed").value}`));
$("defaults").onclick = () => {
  for (const name of ["temperature", "top_k", "top_p", "cfg_coef"]) $(name).value = about.defaults[name];
};
const stop = () => clips.forEach((clip) => !clip.end && clip.controller.abort());
$("stop").onclick = stop;
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
window.addEventListener("beforeunload", (event) => clips.some((clip) => !clip.end) && event.preventDefault());
