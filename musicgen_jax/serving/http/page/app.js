"use strict";
// The beginning: what the page learns of its server, and what it shows first.

// What there is to know of the model.
async function learn() {
  const told = await (await ask("app/about")).json();
  const same = about && ["model", "sample_rate", "channels", "window", "upload_seconds"].every((name) => told[name] === about[name]);
  const before = sounds;
  const given = same ? [] : before.map((sound) => sound.sent()).filter(Boolean);
  about = told;
  showModels();
  $("licence").textContent = `${about.model}: licence and limits`;
  $("limits").textContent = about.limits;
  $("terms").textContent = about.terms;
  $("duration").max = about.max_duration;
  $("seed").max = about.max_seed;
  const examples = about.examples.map((text) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.onclick = () => (($("prompt").value = text), setPlan([]), make());
    item.append(button);
    return item;
  });
  $("examples").replaceChildren(...examples);
  $("examples").parentElement.hidden = !examples.length;
  before.forEach((sound) => sound.hush());
  sounds = about.takes.map((kind) => (same && before.find((sound) => sound.kind === kind)) || new Sound(kind));
  $("sounds").querySelectorAll(".sound").forEach((node) => node.remove());
  $("sounds").append(...sounds.map((sound) => sound.node));
  for (const each of given) sounds.find(({ kind }) => kind === each.kind)?.restore(each);
  clips.forEach((clip) => clip.card.refresh());
}

async function begin() {
  try {
    await learn();
  } catch {
    return; // `lost` comes back here
  }
  fill({ ...about.defaults, seed: newSeed(), ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) });
  await kept.open();
  if (!kept.db) $("kept").textContent = "This browser keeps no clips: download the ones that you want to keep.";
  await showKept();
  document.body.dataset.ready = "true";
  requestAnimationFrame(player.tick);
}

window.addEventListener("hashchange", () => about && fill(Object.fromEntries(new URLSearchParams(location.hash.slice(1)))));
begin();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...clips.map(({ card }) => card), ...sounds].forEach((each) => each.draw()));
