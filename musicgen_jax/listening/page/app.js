"use strict";
// The page of a listening study. It talks to its own server only, and knows clips by neutral names.

const $ = (id) => document.getElementById(id);
const BIN = 0.1; // seconds: what was heard is counted in steps of this length
const FADE = 0.015; // seconds, between clips
const WORDS = ["bad", "poor", "fair", "good", "excellent"];
const RETRY = [1, 2, 4, 8]; // seconds between attempts to save; the last one repeats

let about; // of the study, see the server
let rater; // this rater's key
let items = []; // this rater's pieces in order, with their scores
let heardBefore = {}; // by clip: the share that was heard when its sliders opened; outlives a reload
let at = -1; // which of them is shown
let rows = []; // of the clips on the page

// --- Small things -------------------------------------------------------------------------------

const memory = new Map(); // where the browser stores nothing
const store = {
  get(name, otherwise) {
    try {
      const text = localStorage.getItem(name) ?? memory.get(name);
      return text == null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    memory.set(name, JSON.stringify(value));
    try {
      localStorage.setItem(name, JSON.stringify(value));
    } catch {
      /* private mode, or full: this page still remembers */
    }
  },
};

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { cache: "no-store", ...(body === undefined ? {} : post) });
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, value.error || `the server answered ${answer.status}`);
  return value;
}

function show(id) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== id;
  $("footer").hidden = !rater;
  window.scrollTo(0, 0);
  document.querySelector(`#${id} h1`)?.focus({ preventScroll: true });
}

function announce(text) {
  $("announce").textContent = text;
}

const letter = (i) => String.fromCharCode(65 + i);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

// --- Saving -------------------------------------------------------------------------------------
// A score stays in the browser's own storage until the server has confirmed it.

const outbox = {
  busy: false,
  failures: 0,
  timer: 0,
  wake: () => {},
  key: () => `outbox:${about.study}`,
  waiting: () => store.get(outbox.key(), []),
  others: (entry) => (e) => e.rater !== entry.rater || e.clip !== entry.clip || e.scale !== entry.scale,
  add(entry) {
    store.set(outbox.key(), [...outbox.waiting().filter(outbox.others(entry)), entry]);
    if ($("saved").dataset.state !== "unsaved") saved("saving", "Saving …");
    clearTimeout(outbox.timer);
    outbox.timer = setTimeout(outbox.flush, 200); // a slider that is being dragged can rest first
  },
  async flush() {
    if (outbox.busy) return;
    outbox.busy = true;
    while (outbox.waiting().length) {
      const problem = await outbox.sendAll();
      if (problem) {
        outbox.report(problem);
        const pause = RETRY[Math.min(outbox.failures++, RETRY.length - 1)];
        await Promise.race([wait(pause), new Promise((resolve) => (outbox.wake = resolve))]);
      }
    }
    outbox.failures = 0;
    outbox.busy = false;
    saved("saved", "All scores saved");
    if (!$("done").hidden) finish();
  },
  // Returns the first problem. One score that the server refuses does not hold up the others.
  async sendAll() {
    let problem;
    for (const entry of outbox.waiting()) {
      try {
        await ask("api/answers", entry);
        const changed = (e) => outbox.others(entry)(e) || e.score !== entry.score;
        store.set(outbox.key(), outbox.waiting().filter(changed));
      } catch (error) {
        problem ??= error;
        if (!(error.status < 500)) break;
      }
    }
    return problem;
  },
  report(problem) {
    const count = outbox.waiting().length;
    const scores = count === 1 ? "1 score is" : `${count} scores are`;
    const why = problem instanceof Refused ? `the server says: ${problem.message}` : "the server does not answer";
    saved("unsaved", `Not saved yet: ${why}. ${scores} kept in this browser; trying again …`);
    if (!$("done").hidden) finish();
  },
};
window.addEventListener("online", () => outbox.wake());

function saved(state, text) {
  if ($("saved").textContent === text) return; // a live region repeats what is set again
  $("saved").dataset.state = state;
  $("saved").textContent = text;
}

// --- Sound --------------------------------------------------------------------------------------
// All clips of a piece are decoded before they are played, so that one can follow another at once.

const player = {
  context: null,
  buffers: new Map(), // by clip
  heard: new Map(), // by clip: which steps of BIN seconds were played
  current: null, // clip
  playing: null, // {source, gain, began}: began is when position 0 was, by the context's clock
  offset: 0, // seconds, where it is not playing
  marked: 0, // position up to which heard is up to date

  async load(clip) {
    const answer = await fetch(`clips/${clip}`);
    if (!answer.ok) throw new Refused(answer.status, "a clip cannot be loaded");
    // Decoding converts to the device's rate, and well. Players of other rates interpolate linearly.
    player.context ??= new AudioContext({ latencyHint: "interactive" });
    const buffer = await player.context.decodeAudioData(await answer.arrayBuffer());
    player.buffers.set(clip, buffer);
    const bins = Math.max(1, Math.floor(buffer.duration / BIN));
    if (player.heard.get(clip)?.length !== bins) player.heard.set(clip, new Uint8Array(bins));
  },
  forget() {
    player.stop();
    player.buffers.clear();
    player.current = null;
    player.offset = 0;
  },
  duration: () => player.buffers.get(player.current)?.duration ?? 0,
  position() {
    if (!player.playing) return player.offset;
    const since = Math.max(0, player.context.currentTime - player.playing.began);
    return player.playing.source.loop ? since % player.duration() : Math.min(since, player.duration());
  },
  async start(clip, position) {
    if (!player.buffers.has(clip)) return;
    player.stop();
    await player.context.resume(); // browsers let a page play after a click only
    player.stop(); // another key may have been quicker
    const buffer = player.buffers.get(clip);
    if (!buffer) return;
    player.current = clip;
    player.offset = player.marked = position < buffer.duration - 0.05 ? position : 0;
    const source = new AudioBufferSourceNode(player.context, { buffer, loop: $("loop").checked });
    const gain = new GainNode(player.context, { gain: 0 });
    source.connect(gain).connect(player.context.destination);
    const now = player.context.currentTime;
    gain.gain.setValueAtTime(0, now);
    gain.gain.linearRampToValueAtTime(1, now + FADE);
    source.start(now, player.offset);
    const playing = { source, gain, began: now - player.offset };
    player.playing = playing;
    source.onended = () => {
      if (player.playing !== playing) return;
      player.tick(buffer.duration);
      player.playing = null;
      player.offset = 0;
      draw();
    };
    draw();
  },
  stop() {
    if (!player.playing) return;
    player.tick();
    player.offset = player.position();
    const { source, gain } = player.playing;
    player.playing = null;
    const now = player.context.currentTime;
    gain.gain.cancelScheduledValues(now);
    gain.gain.setValueAtTime(gain.gain.value, now);
    gain.gain.linearRampToValueAtTime(0, now + FADE);
    source.stop(now + FADE);
  },
  toggle() {
    if (player.playing) player.stop();
    else player.start(player.current ?? rows[0]?.clip, player.offset);
    draw();
  },
  seek(position) {
    if (player.playing) player.start(player.current, position);
    else player.offset = position;
  },
  // Counts what was played since the last call. A step counts if it was played to its end.
  tick(now = player.position()) {
    const bins = player.heard.get(player.current);
    if (!bins) return;
    const mark = (from, to) => bins.fill(1, Math.ceil(from / BIN - 0.5), Math.max(0, Math.floor(to / BIN + 0.5)));
    if (now >= player.marked) mark(player.marked, now);
    else {
      mark(player.marked, player.duration() + BIN);
      mark(0, now);
    }
    player.marked = now;
  },
  share(clip) {
    const bins = player.heard.get(clip);
    return Math.max(heardBefore[clip] ?? 0, bins ? bins.reduce((sum, bin) => sum + bin, 0) / bins.length : 0);
  },
};

function playClip(clip) {
  // A clip that is new begins at its beginning; others go on where the last one is.
  const known = clip === player.current || (player.share(clip) > 0.98 && clip !== items[at].melody);
  player.start(clip, known ? player.position() : 0);
}

setInterval(() => {
  if (!player.playing) return;
  player.tick();
  draw();
}, 50);

// --- One piece ----------------------------------------------------------------------------------

const complete = (item) => item.clips.every((one) => item.scales.every((scale) => one.scores[scale]));

function open(index) {
  player.forget();
  at = index;
  const item = items[at];
  $("heading").textContent = `Piece ${at + 1} of ${items.length}`;
  $("text").textContent = item.text ?? "";
  $("text").hidden = item.text === null;
  $("melody").hidden = item.melody === null;
  $("melody-play").disabled = true;
  $("back").disabled = at === 0;
  $("next").textContent = at === items.length - 1 ? "Finish" : "Next piece";
  $("missing").textContent = $("unloaded").textContent = "";
  rows = item.clips.map((one, i) => makeRow(item, one, i));
  $("clips").replaceChildren(...rows.map((row) => row.element));
  drawProgress();
  show("piece");
  draw();
  loadAll(index, [...item.clips.map((one) => one.clip), ...(item.melody ? [item.melody] : [])]);
}

async function loadAll(index, clips) {
  const load = async (clip) => {
    while (at === index && !player.buffers.has(clip)) {
      try {
        await player.load(clip);
        draw();
      } catch (error) {
        $("unloaded").textContent = `A clip cannot be loaded (${error.message}); trying again …`;
        await wait(2);
      }
    }
  };
  await Promise.all(clips.map(load));
  if (at !== index) return;
  $("unloaded").textContent = "";
  announce("The clips are loaded.");
  for (const one of items[index + 1]?.clips ?? []) fetch(`clips/${one.clip}`).catch(() => {});
}

function makeRow(item, one, i) {
  const element = $("clip-row").content.firstElementChild.cloneNode(true);
  const row = { element, clip: one.clip, one, letter: letter(i), button: element.querySelector(".letter"), sliders: [] };
  row.hint = element.querySelector(".hint");
  row.hint.id = `hint-${i}`;
  element.querySelector(".name").textContent = row.letter;
  row.button.addEventListener("click", () => (player.playing && player.current === row.clip ? player.toggle() : playClip(row.clip)));
  for (const scale of item.scales) {
    const score = $("score-row").content.firstElementChild.cloneNode(true);
    const [label, input] = [score.querySelector("label"), score.querySelector("input")];
    input.id = label.htmlFor = `score-${i}-${scale}`;
    input.setAttribute("aria-label", `Clip ${row.letter}: ${about.scales[scale].label}`);
    input.setAttribute("aria-describedby", row.hint.id);
    label.textContent = about.scales[scale].label;
    const slider = { input, value: score.querySelector(".value"), scale };
    if (one.scores[scale]) input.value = one.scores[scale];
    // A click that moves nothing is an answer, too.
    for (const event of ["input", "pointerup"]) input.addEventListener(event, () => setScore(row, slider));
    input.addEventListener("keydown", (event) => event.key === "Enter" && setScore(row, slider));
    row.sliders.push(slider);
    element.querySelector(".scores").append(score);
  }
  return row;
}

function setScore(row, slider) {
  const score = Number(slider.input.value);
  if (slider.input.disabled || row.one.scores[slider.scale] === score) return;
  row.one.scores[slider.scale] = score;
  $("missing").textContent = "";
  draw();
  drawProgress();
  outbox.add({ rater, clip: row.clip, scale: slider.scale, score, heard: Math.min(1, player.share(row.clip)) });
}

function drawProgress() {
  const finished = items.filter(complete).length;
  $("progress").hidden = false;
  $("progress").max = items.length;
  $("progress").value = finished;
  $("progress").textContent = `${finished} of ${items.length}`;
}

function draw() {
  if ($("piece").hidden) return;
  const playing = Boolean(player.playing);
  const position = player.position();
  const ready = rows.length > 0 && rows.every((row) => player.buffers.has(row.clip));
  const current = rows.find((row) => row.clip === player.current);
  const name = current ? `clip ${current.letter}` : player.current ? "the melody" : "";
  $("play").dataset.playing = playing;
  $("play").setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${name}`.trim());
  $("play").disabled = $("restart").disabled = $("seek").disabled = !ready;
  $("seek").max = Math.max(player.duration(), 0.1);
  if (document.activeElement !== $("seek") || playing) $("seek").value = position;
  $("seek").setAttribute("aria-valuetext", `${Math.round(position)} of ${Math.round(player.duration())} seconds`);
  $("time").textContent = `${clock(position)} / ${clock(player.duration())}`;
  $("melody-play").disabled = !player.buffers.has(items[at].melody);
  $("melody-play").dataset.playing = playing && player.current === items[at].melody;
  for (const row of rows) drawRow(row, ready, playing && row === current);
}

function drawRow(row, ready, playing) {
  const share = player.share(row.clip);
  const open = share >= about.must_hear - 0.02 || row.sliders.some((slider) => row.one.scores[slider.scale]);
  row.button.disabled = !ready;
  row.button.dataset.playing = playing;
  row.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} clip ${row.letter}`);
  row.button.style.setProperty("--heard", Math.min(1, share / Math.max(0.01, about.must_hear)));
  row.element.dataset.current = row.clip === player.current;
  const hint = open ? "" : about.must_hear > 0.97 ? "Listen to the whole clip first." : `Listen to ${Math.round(about.must_hear * 100)} % of the clip first.`;
  if (row.hint.textContent !== hint) row.hint.textContent = hint;
  if (open && row.sliders.some((slider) => slider.input.disabled)) {
    heardBefore[row.clip] = share;
    store.set(`heard:${rater}`, heardBefore);
    if (row.opened === false) announce(`Clip ${row.letter} can be scored now.`);
  }
  row.opened = open;
  for (const { input, value, scale } of row.sliders) {
    const score = row.one.scores[scale];
    const word = WORDS[Math.min(4, Math.floor(((score ?? 1) - 1) / 20))];
    input.disabled = !open;
    input.dataset.set = Boolean(score);
    input.setAttribute("aria-valuetext", score ? `${score}, ${word}` : "no score yet");
    value.textContent = score ?? "–"; // screen readers have the valuetext
  }
}

function next() {
  for (const row of rows)
    for (const { input, scale } of row.sliders)
      if (!row.one.scores[scale]) {
        $("missing").textContent = `Clip ${row.letter} has no score yet: ${about.scales[scale].label}.`;
        (input.disabled ? row.button : input).focus();
        return;
      }
  if (at + 1 < items.length) open(at + 1);
  else finish();
}

function finish() {
  const unfinished = items.findIndex((item) => !complete(item));
  if (unfinished >= 0) return open(unfinished);
  player.forget();
  const waiting = outbox.waiting().length;
  $("done-text").textContent = waiting
    ? `You have scored every piece, but ${waiting} of your scores are not saved yet. Please keep this page open.`
    : "You have scored every piece, and every score is saved. You can close this page.";
  if ($("done").hidden) show("done");
}

// --- Keys ---------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  const target = event.target;
  const typing = target.matches?.("input:not([type=range]):not([type=checkbox]), textarea");
  if ($("piece").hidden || typing || !$("shortcuts").checked) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === " " && target.matches?.("button, summary, [type=checkbox]")) return; // it has a meaning there
  const row = /^[1-9]$/.test(key) ? rows[Number(key) - 1] : undefined;
  const actions = {
    " ": () => !$("play").disabled && player.toggle(),
    r: () => player.current && player.start(player.current, 0),
    l: () => $("loop").click(),
    m: () => items[at].melody && playClip(items[at].melody),
    n: next,
    b: () => at > 0 && open(at - 1),
  };
  if (!row && !Object.hasOwn(actions, key)) return;
  event.preventDefault();
  if (event.repeat) return;
  if (!row) return actions[key]();
  if (!(player.playing && player.current === row.clip)) playClip(row.clip);
  const slider = row.sliders.find(({ input }) => !input.disabled);
  (slider?.input ?? row.button).focus();
});

$("play").addEventListener("click", () => player.toggle());
$("restart").addEventListener("click", () => player.start(player.current ?? rows[0].clip, 0));
$("seek").addEventListener("input", () => player.seek(Number($("seek").value)));
$("loop").addEventListener("change", () => player.playing && player.start(player.current, player.position()));
$("melody-play").addEventListener("click", () =>
  player.playing && player.current === items[at].melody ? player.toggle() : playClip(items[at].melody));
$("back").addEventListener("click", () => open(at - 1));
$("next").addEventListener("click", next);
$("review").addEventListener("click", () => open(0));
$("shortcuts").addEventListener("change", () => store.set("shortcuts", $("shortcuts").checked));

// --- Coming in ----------------------------------------------------------------------------------

function welcome(message = "") {
  rater = undefined;
  const questions = Object.values(about.scales).map((scale) => scale.question);
  $("task").textContent = `You will hear ${about.pieces} ${about.pieces === 1 ? "piece" : "pieces"} of music in ${about.clips} versions each. Listen to every version and move its sliders, from 1 (bad) to 100 (excellent):`;
  $("questions").replaceChildren(...questions.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  $("welcome-error").textContent = message;
  show("welcome");
}

async function join(key) {
  const tasks = await ask(`api/raters/${encodeURIComponent(key)}`);
  rater = key;
  items = tasks.items;
  heardBefore = store.get(`heard:${rater}`, {});
  store.set(`rater:${about.study}`, rater);
  history.replaceState(null, "", `#rater=${rater}`);
  $("who").textContent = tasks.name ? `You are ${tasks.name}.` : "You have not given a name.";
  // What a reload or a dead server has interrupted is newer than what the server knows.
  const pending = outbox.waiting();
  const clips = new Map(items.flatMap((item) => item.clips.map((one) => [one.clip, one])));
  for (const { rater: whose, clip, scale, score } of pending)
    if (whose === rater && clips.has(clip)) clips.get(clip).scores[scale] = score;
  if (pending.length) outbox.flush();
  finish();
}

async function enter(token) {
  await ask("api/enter", { token });
}

async function begin() {
  const words = new URLSearchParams(location.hash.slice(1));
  about = await ask("api/study");
  document.title = $("title").textContent = about.title;
  $("shortcuts").checked = store.get("shortcuts", true);
  if (words.has("token")) {
    const token = words.get("token");
    words.delete("token");
    history.replaceState(null, "", words.size ? `#${words}` : location.pathname);
    await enter(token).catch((error) => ($("enter-error").textContent = error.message));
  }
  const key = words.get("rater") ?? store.get(`rater:${about.study}`, null);
  if (key) {
    try {
      return await join(key);
    } catch (error) {
      if (error.status === 401) return show("enter");
      if (error.status === 404) return welcome("The study does not know the rater of this link. Start again:");
      throw error;
    }
  }
  welcome();
}

async function keepTrying() {
  for (;;) {
    try {
      return await begin();
    } catch (error) {
      $("loading").firstElementChild.textContent = `The study cannot be opened (${error.message}); trying again …`;
      show("loading");
      await wait(2);
    }
  }
}

$("welcome-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const { rater: key } = await ask("api/raters", { name: $("name").value });
    await join(key);
  } catch (error) {
    if (error.status === 401) return show("enter");
    $("welcome-error").textContent = `This did not work: ${error.message}. Try again.`;
  }
});
$("enter-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await enter($("token").value);
    $("enter-error").textContent = "";
    await keepTrying();
  } catch (error) {
    $("enter-error").textContent = error.message;
  }
});
$("other").addEventListener("click", () => {
  player.forget();
  store.set(`rater:${about.study}`, null);
  history.replaceState(null, "", location.pathname);
  $("progress").hidden = true;
  welcome();
});

keepTrying();
