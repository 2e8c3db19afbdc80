"use strict";
// Which text sounds when: bands under the picture of a clip, and a list.

const COLORS = 6; // of bands, see app.css

// What holds from when on, counted in seconds from the first sample that the clip keeps.
function scenesOf(clip) {
  const { schedule = [], ...settings } = clip.settings;
  const shift = (clip.lead - clip.dropped) / clip.rate;
  const scenes = [{ ...settings, start: 0 }];
  for (const { seconds, ...changes } of schedule) {
    scenes.push({ ...scenes.at(-1), ...changes, changes, start: Math.max(0, seconds + shift) });
  }
  // Of those that are over before the first sample only the last one counts, and a clip that was
  // stopped does not come to all of them.
  const end = clip.end ? clip.total / clip.rate : Infinity;
  return scenes.filter((scene, i) => scene.start < end && (scene.start > 0 || !(scenes[i + 1]?.start <= 0)));
}

const sceneAt = (clip, frame) => scenesOf(clip).findLast(({ start }) => start <= frame / clip.rate);

// A change in words: only what changes.
function inWords({ prompt, negative_prompt, cfg_coef, temperature }) {
  const words = [];
  if (prompt !== undefined) words.push(prompt || "no description");
  if (negative_prompt !== undefined) words.push(negative_prompt ? `away from ${negative_prompt}` : "away from nothing");
  if (cfg_coef !== undefined) words.push(`guidance ${cfg_coef}`);
  if (temperature !== undefined) words.push(`temperature ${temperature}`);
  return words.join(", ");
}

// A line of a list: when, and what. With `jump` the time is a button.
function sceneLine(time, text, color, jump) {
  const line = document.createElement("li");
  const when = document.createElement(jump ? "button" : "span");
  when.className = "when";
  when.textContent = time;
  if (jump) {
    when.type = "button";
    when.setAttribute("aria-label", `Go to ${time}`);
    when.onclick = jump;
  }
  const what = document.createElement("span");
  what.textContent = text;
  line.dataset.color = color % COLORS;
  line.append(when, what);
  return line;
}

class Scenes {
  constructor(card) {
    this.clip = card.clip;
    this.card = card;
    this.bands = card.find(".bands");
    this.list = card.find(".scenes");
    this.drawn = null; // what is on the page
    this.current = -1;
  }
  // Draws them again if they are others now, or the clip has another length.
  refresh() {
    const { clip } = this;
    const scenes = scenesOf(clip);
    const now = JSON.stringify([scenes, clip.total, clip.dropped]);
    if (now === this.drawn) return;
    this.drawn = now;
    this.scenes = scenes;
    this.current = -1;
    const shown = (clip.settings.schedule ?? []).length > 0;
    this.bands.hidden = this.list.hidden = !shown;
    const focused = [...this.list.children].findIndex((line) => line.contains(document.activeElement));
    this.bands.replaceChildren(...(shown ? scenes.map((scene, i) => this.band(scene, i)) : []));
    this.list.replaceChildren(...(shown ? scenes.map((scene, i) => this.line(scene, i)) : []));
    this.list.children[focused]?.querySelector("button").focus();
  }
  band(scene, i) {
    const { clip } = this;
    const end = this.scenes[i + 1]?.start ?? clip.total / clip.rate;
    const band = document.createElement("div");
    band.style.flexGrow = Math.max(0, end - scene.start);
    band.dataset.color = i % COLORS;
    band.textContent = scene.changes ? inWords(scene.changes) : (scene.prompt ?? "no description");
    return band;
  }
  line(scene, i) {
    const { clip, card } = this;
    const text = scene.changes ? inWords(scene.changes) : inWords({ prompt: scene.prompt ?? "" });
    return sceneLine(this.time(i), text, i, () => card.jump(scene.start * clip.rate));
  }
  // In seconds, and in tenths where two scenes begin in the same second.
  time(i) {
    const at = (scene) => scene && clock(this.clip.start + scene.start);
    const [before, here, after] = [i - 1, i, i + 1].map((j) => at(this.scenes[j]));
    return here === before || here === after ? exact(this.clip.start + this.scenes[i].start) : here;
  }
  // Marks the scene that sounds.
  move(frame) {
    const seconds = frame / this.clip.rate + 1e-6;
    const at = this.scenes.findLastIndex(({ start }) => start <= seconds);
    if (at === this.current) return;
    this.current = at;
    for (const each of [this.bands, this.list]) {
      [...each.children].forEach((node, i) => (i === at ? node.setAttribute("aria-current", "true") : node.removeAttribute("aria-current")));
    }
  }
}
