"use strict";
// The page of `musicgen-jax app`. It talks to its own server only.

const $ = (id) => document.getElementById(id);
const NUMBERS = ["duration", "seed", "temperature", "top_k", "top_p", "cfg_coef"];
const LEAD = 0.08; // seconds between the order to play and the first sample
const AHEAD = 0.3; // seconds that must be there before a clip plays while it is made
const MARGIN = 1.15; // a machine slower than real time is not always equally slow
const BIN = 0.02; // seconds of a bar of the waveform, at its finest
const RETRY = 1500; // milliseconds between two looks for a server that is gone

let about; // of the model, see the server
let clips = []; // newest first, as on the page

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const short = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : `${clock(seconds)} min`);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % Math.min(about.max_seed + 1, 2 ** 31);

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

// --- The server ---------------------------------------------------------------------------------

class Refused extends Error {}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name !== "AbortError") lost();
    throw error;
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(told.error?.message ?? `the server answered ${answer.status}`);
}

let looking = false;
async function lost() {
  if (looking) return;
  looking = true;
  $("offline").textContent = "The server does not answer. Start musicgen-jax app again: this page goes on by itself. Your clips are kept in this browser.";
  $("offline").hidden = false;
  while (!(await fetch("health", { cache: "no-store" }).then((answer) => answer.ok, () => false))) await wait(RETRY);
  looking = false;
  $("offline").hidden = true;
  $("error").textContent = "";
  say("The server answers again.");
  if (!about) begin();
}

const message = (error) => (error instanceof Refused ? `The server says: ${error.message}.` : "The server does not answer.");

// --- Clips that are kept ------------------------------------------------------------------------
// What a clip is and what it sounds like lie apart: a list of clips needs no sound.

const kept = {
  db: null,
  open: () =>
    new Promise((resolve) => {
      let request;
      try {
        request = indexedDB.open("musicgen-jax", 1);
      } catch {
        return resolve();
      }
      request.onupgradeneeded = () => {
        request.result.createObjectStore("clips", { keyPath: "id" });
        request.result.createObjectStore("sounds");
      };
      request.onsuccess = () => resolve((kept.db = request.result));
      request.onerror = () => resolve();
    }),
  run(mode, work) {
    if (!kept.db) return Promise.reject(new Error("this browser keeps nothing"));
    return new Promise((resolve, reject) => {
      const step = kept.db.transaction(["clips", "sounds"], mode);
      const request = work(step.objectStore("clips"), step.objectStore("sounds"));
      step.oncomplete = () => resolve(request?.result);
      step.onabort = step.onerror = () => reject(step.error);
    });
  },
  all: () => kept.run("readonly", (list) => list.getAll()).catch(() => []),
  sound: (id) => kept.run("readonly", (_, sounds) => sounds.get(id)),
  async add(clip) {
    const { id, created, settings, several, rate, channels, frames, peaks, program, end, model } = clip;
    const entry = { id, created, settings, several, rate, channels, frames, peaks, program, end, model };
    try {
      await kept.run("readwrite", (list, sounds) => (list.put(entry), sounds.put(clip.samples(), id)));
    } catch {
      $("kept").textContent = "This browser cannot keep more clips: download what you like.";
    }
  },
  remove: (id) => kept.run("readwrite", (list, sounds) => (list.delete(id), sounds.delete(id))).catch(() => {}),
};
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("musicgen-jax") : { postMessage() {} };
tabs.onmessage = () => showKept();

// --- A clip -------------------------------------------------------------------------------------

class Clip {
  static count = 0; // since the page was opened
  static sounded = false; // whether one of these has made a sound

  constructor(settings, saved) {
    this.id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    this.created = Date.now();
    this.settings = settings;
    this.model = about.model;
    this.rate = about.sample_rate;
    this.channels = about.channels;
    this.parts = []; // Int16Array each, channels interleaved
    this.frames = 0; // that are here
    this.peaks = []; // of BIN seconds each, from 0 to 255
    this.end = null; // done, stopped, lost: null while it is made
    this.underruns = 0;
    this.number = Clip.count++;
    this.several = false; // made with variations, which stand side by side
    this.speed = null; // seconds of music per second
    Object.assign(this, saved);
    this.loudest = Math.max(100, ...this.peaks); // of the picture: quiet music is drawn quiet, but not flat
    this.total = this.end ? this.frames : Math.round(settings.duration * this.rate);
    this.card = new Card(this);
  }
  get seconds() {
    return this.frames / this.rate;
  }
  samples() {
    if (this.parts.length > 1) {
      const whole = new Int16Array(this.frames * this.channels);
      let at = 0;
      for (const part of this.parts) whole.set(part, at), (at += part.length);
      this.parts = [whole];
    }
    return this.parts[0] ?? new Int16Array(0);
  }
  async load() {
    if (!this.parts.length && this.frames) this.parts = [await kept.sound(this.id)];
  }
  add(part) {
    Clip.sounded = true;
    this.parts.push(part);
    this.frames += part.length / this.channels;
    this.measure();
  }
  // The loudest sample of each bar that is whole.
  measure() {
    const width = Math.round(BIN * this.rate) * this.channels;
    const whole = Math.floor((this.frames * this.channels) / width);
    let done = this.peaks.length * width;
    let before = this.frames * this.channels;
    let first = this.parts.length;
    while (before > done && first) before -= this.parts[--first].length;
    let part = first;
    let at = done - before;
    while (this.peaks.length < whole) {
      let most = 0;
      for (let i = 0; i < width; i++) {
        while (at === this.parts[part].length) (part += 1), (at = 0);
        const value = Math.abs(this.parts[part][at++]);
        if (value > most) most = value;
      }
      this.peaks.push(Math.min(255, most >> 7));
      this.loudest = Math.max(this.loudest, most >> 7);
    }
  }
  // Frames from..., as many as there are, for the sound card: Float32Array for each channel.
  slice(from) {
    const out = Array.from({ length: this.channels }, () => new Float32Array(this.frames - from));
    let start = 0;
    for (const part of this.parts) {
      const frames = part.length / this.channels;
      for (let i = Math.max(0, from - start); i < frames; i++) {
        for (let c = 0; c < this.channels; c++) out[c][start + i - from] = part[i * this.channels + c] / 32768;
      }
      start += frames;
    }
    return out;
  }
  about() {
    return { model: this.model, ...this.settings, program: this.program, made: new Date(this.created).toISOString(), seconds: this.seconds };
  }

  async make() {
    this.controller = new AbortController();
    try {
      const answer = await ask("v1/audio/generate", {
        method: "POST",
        signal: this.controller.signal,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...this.settings, stream: true, response_format: "pcm" }),
      });
      this.rate = +answer.headers.get("X-Sample-Rate");
      this.channels = +answer.headers.get("X-Channels");
      this.program = answer.headers.get("X-Program");
      await this.receive(answer.body.getReader());
      this.end = "done";
    } catch (error) {
      this.end = error.name === "AbortError" ? "stopped" : "lost";
      if (this.end === "lost") {
        if (this.frames) lost();
        if (!this.frames || error instanceof Refused) $("error").textContent = message(error);
      }
    }
    this.total = this.frames;
    player.arrived(this);
    if (this.frames) {
      await kept.add(this);
      tabs.postMessage("changed");
    } else {
      remove(this, false);
    }
    this.card.refresh();
    working();
    const ends = { done: "The clip is finished.", stopped: "Stopped.", lost: "The clip was cut off." };
    say(ends[this.end]);
  }
  async receive(reader) {
    let rest = new Uint8Array(0);
    let began;
    let first = 0;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const bytes = new Uint8Array(rest.length + value.length);
      bytes.set(rest);
      bytes.set(value, rest.length);
      const whole = bytes.length - (bytes.length % (2 * this.channels));
      rest = bytes.slice(whole);
      if (!whole) continue;
      this.add(new Int16Array(bytes.slice(0, whole).buffer));
      const now = performance.now() / 1000;
      if (began === undefined) (began = now), (first = this.frames);
      else if (now > began) this.speed = (this.frames - first) / this.rate / (now - began);
      player.arrived(this);
      this.card.refresh();
    }
  }
}

// --- Sound --------------------------------------------------------------------------------------
// One clip sounds at a time. Its samples are queued one after the other at exact times, so that
// there are no gaps. The context has the clip's own rate: no sample is interpolated.

const player = {
  context: null,
  output: null,
  clip: null,
  playing: false,
  holding: false, // wants to play, and waits for more
  nodes: new Set(),
  from: 0, // the frame that sounds at `zero`, by the context's clock
  zero: 0,
  turn: 0, // counts the orders to play
  drawn: 0, // when, in milliseconds
  queued: 0, // the frame up to which samples are queued

  // Browsers let a page sound only if a click or a key began it.
  wake(rate) {
    if (player.context?.sampleRate !== rate) {
      player.context?.close();
      player.context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
      player.output = player.context.createAnalyser();
      player.output.connect(player.context.destination);
    }
    player.context.resume();
  },
  async play(clip, from = clip.card.position) {
    player.pause();
    player.wake(clip.rate);
    const turn = ++player.turn;
    await clip.load();
    if (turn !== player.turn) return; // meanwhile another clip was chosen
    if (player.clip && player.clip !== clip) player.clip.card.refresh();
    player.clip = clip;
    player.from = from >= clip.total ? 0 : from;
    player.holding = true;
    player.arrived(clip);
    clip.card.refresh();
  },
  pause() {
    const { clip } = player;
    if (!clip || !(player.playing || player.holding)) return;
    clip.card.position = player.frame();
    player.silence();
    player.holding = false;
    clip.card.refresh();
  },
  silence() {
    for (const node of player.nodes) node.onended = null, node.stop();
    player.nodes.clear();
    player.playing = false;
  },
  frame() {
    if (!player.playing) return player.from;
    const passed = Math.max(0, (player.context.currentTime - player.zero) * player.clip.rate);
    return Math.min(player.from + passed, player.queued);
  },
  // Whether what is there lasts until the rest is made.
  enough(clip) {
    if (clip.end) return true;
    const there = (clip.frames - player.from) / clip.rate;
    if (clip.speed === null || there < AHEAD) return false;
    const missing = (clip.total - clip.frames) / clip.rate;
    return there >= missing * MARGIN * (1 / clip.speed - 1);
  },
  // More of a clip is here, or its end.
  arrived(clip) {
    if (clip !== player.clip) return;
    if (player.holding && player.enough(clip)) {
      player.holding = false;
      if (player.from >= clip.frames) return;
      player.playing = true;
      // On a whole frame: the samples then need no interpolation.
      player.zero = Math.ceil((player.context.currentTime + LEAD) * clip.rate) / clip.rate;
      player.queued = player.from = Math.floor(player.from);
    }
    if (player.playing && player.queued < clip.frames) player.queue(clip);
  },
  queue(clip) {
    const sound = clip.slice(player.queued);
    const buffer = player.context.createBuffer(clip.channels, sound[0].length, clip.rate);
    sound.forEach((samples, channel) => buffer.copyToChannel(samples, channel));
    const at = player.zero + (player.queued - player.from) / clip.rate;
    if (at < player.context.currentTime) return player.ranDry(clip);
    const node = player.context.createBufferSource();
    node.buffer = buffer;
    node.connect(player.output);
    node.onended = () => player.nodes.delete(node);
    node.start(at);
    player.nodes.add(node);
    player.queued = clip.frames;
  },
  ranDry(clip) {
    player.silence();
    clip.underruns += 1;
    player.from = player.queued;
    player.holding = true;
    player.arrived(clip);
    clip.card.refresh();
  },
  // Called for every picture of the page.
  tick() {
    const { clip } = player;
    if (player.playing && player.frame() >= player.queued) {
      if (!clip.end) player.ranDry(clip);
      else {
        player.silence();
        player.from = clip.card.position = 0;
        clip.card.refresh();
      }
    }
    const now = performance.now();
    if (player.playing && now - player.drawn > 40) (player.drawn = now), clip.card.move(player.frame());
    requestAnimationFrame(player.tick);
  },
};

// --- A card -------------------------------------------------------------------------------------

const NAMES = { prompt: "Description", duration: "Seconds", seed: "Seed", temperature: "Temperature", top_k: "Top-k", top_p: "Top-p", cfg_coef: "Guidance", model: "Model", program: "Program", made: "Made" };

class Card {
  constructor(clip) {
    this.clip = clip;
    this.position = 0; // frame where it plays from
    this.node = $("card").content.firstElementChild.cloneNode(true);
    this.node.id = `clip-${clip.id}`;
    this.node.dataset.several = clip.several;
    this.canvas = this.find("canvas");
    const { settings } = clip;
    const title = settings.prompt ?? "No description";
    this.find(".prompt").textContent = title;
    this.find("article").setAttribute("aria-label", `${title}, seed ${settings.seed}`);
    this.find(".play").onclick = () => (this.active() ? player.pause() : player.play(clip));
    this.seek = this.find(".seek");
    this.seek.oninput = () => this.jump(this.seek.value * clip.rate);
    this.seek.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (step) event.preventDefault(), this.jump(Math.max(0, this.position + step * clip.rate));
    };
    this.find(".halt").onclick = () => clip.controller.abort();
    this.find(".again").onclick = () => again(clip);
    this.find(".reuse").onclick = () => (fill(settings), $("prompt").focus());
    this.find(".spectrum").onclick = () => this.toggle();
    this.find(".share").onclick = () => share(clip);
    this.find(".delete").onclick = () => remove(clip, true);
    for (const button of this.node.querySelectorAll("[data-form]")) {
      button.onclick = () => download(clip, button.dataset.form);
    }
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.refresh();
  }
  find(selector) {
    return this.node.querySelector(selector);
  }
  active() {
    return player.clip === this.clip && (player.playing || player.holding);
  }
  jump(frame) {
    this.position = Math.min(frame, this.clip.frames);
    if (this.active()) player.play(this.clip, this.position);
    else this.move(this.position);
  }
  // Everything but the picture of the position.
  refresh() {
    const { clip, node } = this;
    const { settings } = clip;
    const playing = this.active();
    node.dataset.current = playing;
    const play = this.find(".play");
    play.dataset.playing = playing;
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
    play.disabled = !clip.frames && !playing;
    this.seek.disabled = !clip.frames;
    this.seek.max = clip.total / clip.rate;
    this.find(".facts").textContent = [short(clip.total / clip.rate), `seed ${settings.seed}`, clip.model, this.unusual()].filter(Boolean).join(" · ");
    this.find(".making").hidden = !!clip.end;
    this.find(".delete").hidden = !clip.end;
    this.find(".actions").hidden = this.find(".all").hidden = !clip.end;
    this.find(".note").textContent = this.note();
    if (!clip.end) {
      this.find("progress").value = clip.frames / clip.total;
      this.find(".pace").textContent = this.pace();
    } else if (!this.find("dl").childElementCount) {
      this.find("dl").replaceChildren(...Object.entries(clip.about()).filter(([name, value]) => NAMES[name] && value != null).map(row));
    }
    this.move(playing ? player.frame() : this.position);
  }
  unusual() {
    const { settings } = this.clip;
    const differs = (name) => settings[name] !== about.defaults[name];
    return ["temperature", "top_k", "top_p", "cfg_coef"].filter(differs).map((name) => `${NAMES[name].toLowerCase()} ${settings[name]}`).join(" · ");
  }
  pace() {
    const { clip } = this;
    if (!clip.frames) {
      const earlier = clips.filter((other) => !other.end && other.number < clip.number).length;
      if (earlier) return `Waiting for its turn: ${earlier === 1 ? "one of your clips comes" : `${earlier} of your clips come`} first.`;
      if (Clip.sounded) return "Waiting for the first sound.";
      return "Waiting for the first sound. The first clip after a start takes longer: the model is being compiled.";
    }
    const made = `${clip.seconds.toFixed(1)} of ${short(clip.total / clip.rate)}`;
    if (!clip.speed) return made;
    const left = Math.ceil((clip.total - clip.frames) / clip.rate / clip.speed);
    return `${made} · ${clip.speed.toFixed(1)} × real time · ${Math.round(clip.speed * about.frame_rate)} steps/s · ${short(left)} left`;
  }
  note() {
    const { clip } = this;
    const notes = [];
    if (clip.end === "stopped") notes.push(`Stopped after ${short(clip.seconds)} of ${short(clip.settings.duration)}.`);
    if (clip.end === "lost") notes.push(`Cut off after ${short(clip.seconds)} of ${short(clip.settings.duration)}: the server went away.`);
    if (player.clip === clip && player.holding && clip.speed !== null && clip.speed < 1) {
      notes.push(`This machine makes music at ${clip.speed.toFixed(2)} × real time: it plays as soon as it can play to the end.`);
    }
    if (clip.underruns) notes.push(`Paused ${clip.underruns === 1 ? "once" : `${clip.underruns} times`} to wait for more.`);
    return notes.join(" ");
  }
  move(frame) {
    const { clip } = this;
    this.position = frame;
    const seconds = frame / clip.rate;
    this.seek.value = seconds;
    this.seek.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(clip.total / clip.rate)}`);
    this.find(".time").textContent = `${clock(seconds)} / ${clock(clip.total / clip.rate)}`;
    this.draw();
  }
  async toggle() {
    await this.clip.load();
    this.spectrum = this.spectrum ? null : new Spectrum(this.clip);
    this.find(".spectrum").setAttribute("aria-pressed", !!this.spectrum);
    this.draw();
  }
  // Bars: what has sounded, what is there, and dots for what is not made yet.
  draw() {
    const { canvas, clip } = this;
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * scale);
    const height = Math.round(canvas.clientHeight * scale);
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) (canvas.width = width), (canvas.height = height);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name);
    const [played, unplayed, unmade] = [color("--played"), color("--unplayed"), color("--unmade")];
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (this.spectrum) return void pen.drawImage(this.spectrum.picture, 0, 0, width, height);
    const step = 4 * scale;
    const bars = Math.floor(width / step);
    const bins = clip.total / clip.rate / BIN;
    const here = this.position / clip.total;
    for (let i = 0; i < bars; i++) {
      const first = Math.floor((i / bars) * bins);
      const last = Math.max(first + 1, Math.floor(((i + 1) / bars) * bins));
      let most = -1;
      for (let j = first; j < last && j < clip.peaks.length; j++) most = Math.max(most, clip.peaks[j]);
      const tall = Math.max(2 * scale, (Math.max(0, most) / clip.loudest) ** 0.8 * height);
      pen.fillStyle = most < 0 && !clip.end ? unmade : (i + 0.5) / bars < here ? played : unplayed;
      pen.beginPath();
      pen.roundRect(i * step, (height - tall) / 2, step * 0.6, tall, step * 0.3);
      pen.fill();
    }
  }
}

// The picture of a finished clip: time to the right, pitch upwards, an octave as high as any other.
class Spectrum {
  constructor(clip) {
    const [columns, rows] = [600, 120];
    const size = clip.rate > 20000 ? 2048 : 1024;
    const [lowest, highest] = [60, clip.rate / 2];
    const samples = clip.samples();
    const [real, imaginary] = [new Float32Array(size), new Float32Array(size)];
    const hann = Float32Array.from(real, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    const bins = Array.from({ length: rows + 1 }, (_, i) => (lowest * (highest / lowest) ** (i / rows) * size) / clip.rate);
    this.picture = document.createElement("canvas");
    Object.assign(this.picture, { width: columns, height: rows });
    const pen = this.picture.getContext("2d");
    const image = pen.createImageData(columns, rows);
    for (let x = 0; x < columns; x++) {
      const start = Math.round(((x + 0.5) / columns) * clip.frames - size / 2);
      for (let i = 0; i < size; i++) real[i] = hann[i] * ((samples[(start + i) * clip.channels] ?? 0) / 32768);
      imaginary.fill(0);
      fourier(real, imaginary);
      for (let y = 0; y < rows; y++) {
        let most = 0;
        const last = Math.min(size / 2 - 1, Math.max(Math.floor(bins[y + 1]), Math.floor(bins[y])));
        for (let k = Math.floor(bins[y]); k <= last; k++) most = Math.max(most, real[k] ** 2 + imaginary[k] ** 2);
        const decibels = 10 * Math.log10(most / (size / 4) ** 2 + 1e-12);
        image.data.set(heat(Math.min(1, Math.max(0, 1 + decibels / 75))), 4 * ((rows - 1 - y) * columns + x));
      }
    }
    pen.putImageData(image, 0, 0);
  }
}

// In place; the length is a power of two.
function fourier(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j], imaginary[i], imaginary[j]] = [real[j], real[i], imaginary[j], imaginary[i]];
  }
  for (let half = 1; half < size; half *= 2) {
    for (let k = 0; k < half; k++) {
      const [cos, sin] = [Math.cos((-Math.PI * k) / half), Math.sin((-Math.PI * k) / half)];
      for (let i = k; i < size; i += 2 * half) {
        const j = i + half;
        const re = real[j] * cos - imaginary[j] * sin;
        const im = real[j] * sin + imaginary[j] * cos;
        real[j] = real[i] - re;
        imaginary[j] = imaginary[i] - im;
        real[i] += re;
        imaginary[i] += im;
      }
    }
  }
}

const HEAT = [[18, 20, 32], [38, 66, 120], [94, 140, 200], [240, 190, 90], [255, 246, 214]];
function heat(share) {
  const at = share * (HEAT.length - 1);
  const i = Math.min(HEAT.length - 2, Math.floor(at));
  return [...HEAT[i].map((from, c) => from + (HEAT[i + 1][c] - from) * (at - i)), 255];
}

function row([name, value]) {
  const line = document.createElement("div");
  const [term, detail] = ["dt", "dd"].map((tag) => document.createElement(tag));
  term.textContent = NAMES[name];
  detail.textContent = value;
  line.append(term, detail);
  return line;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => clips.forEach((clip) => clip.card.draw()));

// --- What can be done with a clip ---------------------------------------------------------------

function again(clip) {
  fill({ ...clip.settings, seed: newSeed() });
  $("variations").value = "1";
  make();
}

async function share(clip) {
  const link = `${location.origin}${location.pathname}#${fragment(clip.settings)}`;
  const button = clip.card.find(".share");
  try {
    await navigator.clipboard.writeText(link);
    button.textContent = "Copied";
    say("The link is copied.");
  } catch {
    history.replaceState(null, "", link);
    button.textContent = "See the address bar";
    say("The link is in the address bar.");
  }
  await wait(2000);
  button.textContent = "Copy link";
}

async function download(clip, form) {
  let blob;
  try {
    await clip.load();
    blob = await asFile(clip, form);
  } catch (error) {
    clip.card.find(".note").textContent = `There is no ${form.toUpperCase()}. ${message(error)}`;
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  const words = (clip.settings.prompt ?? "music").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["music"];
  link.download = `${words.slice(0, 8).join("-").slice(0, 60)}-${clip.settings.seed}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function asFile(clip, form) {
  const told = JSON.stringify(clip.about());
  if (form === "json") return new Blob([JSON.stringify(clip.about(), null, 2), "\n"], { type: "application/json" });
  if (form === "wav") return wav(clip);
  const body = new Blob([told, "\n", clip.samples()]);
  const headers = { "Content-Type": "application/octet-stream" };
  return (await ask(`app/encode/${form}`, { method: "POST", headers, body })).blob();
}

// With the settings as its comment; it needs no server.
function wav(clip) {
  const samples = clip.samples();
  const text = new TextEncoder().encode(JSON.stringify(clip.about()) + "\0");
  const size = text.length + (text.length % 2);
  const head = new DataView(new ArrayBuffer(44));
  const list = new DataView(new ArrayBuffer(20 + size));
  const word = (view, at, letters) => [...letters].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(head, 0, "RIFF");
  head.setUint32(4, 36 + samples.byteLength + list.byteLength, true);
  word(head, 8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, clip.channels, true);
  head.setUint32(24, clip.rate, true);
  head.setUint32(28, clip.rate * clip.channels * 2, true);
  head.setUint16(32, clip.channels * 2, true);
  head.setUint16(34, 16, true);
  word(head, 36, "data");
  head.setUint32(40, samples.byteLength, true);
  word(list, 0, "LIST");
  list.setUint32(4, 12 + size, true);
  word(list, 8, "INFOICMT");
  list.setUint32(16, text.length, true);
  new Uint8Array(list.buffer).set(text, 20);
  return new Blob([head, samples, list], { type: "audio/wav" });
}

function remove(clip, forGood) {
  if (player.clip === clip) player.pause(), (player.clip = null);
  const next = clip.card.node.nextElementSibling ?? clip.card.node.previousElementSibling;
  clips = clips.filter((other) => other !== clip);
  clip.card.node.remove();
  $("empty").hidden = clips.length > 0;
  if (!forGood) return;
  (next?.querySelector(".play") ?? $("prompt")).focus({ preventScroll: true });
  kept.remove(clip.id).then(() => tabs.postMessage("changed"));
  say("Deleted.");
}

async function showKept() {
  const saved = (await kept.all()).sort((a, b) => a.created - b.created);
  const there = new Set(saved.map((entry) => entry.id));
  for (const clip of clips) if (clip.end && kept.db && !there.has(clip.id)) remove(clip, false);
  const shown = new Set(clips.map((clip) => clip.id));
  for (const entry of saved) if (!shown.has(entry.id)) put(new Clip(entry.settings, entry));
}

function put(clip) {
  clips.unshift(clip);
  clips.sort((a, b) => b.created - a.created);
  const after = clips[clips.indexOf(clip) + 1];
  $("clips").insertBefore(clip.card.node, after?.card.node ?? null);
  $("empty").hidden = true;
  clip.card.draw();
}

// --- The form -----------------------------------------------------------------------------------

function read() {
  const settings = { prompt: $("prompt").value.trim() || null };
  for (const name of NUMBERS) settings[name] = $(name).valueAsNumber;
  return settings;
}

function fill(settings) {
  if ("prompt" in settings) $("prompt").value = settings.prompt ?? "";
  for (const name of NUMBERS) if (Number.isFinite(+settings[name])) $(name).value = settings[name];
  const usual = (name) => +$(name).value === about.defaults[name];
  if (!["temperature", "top_k", "top_p", "cfg_coef"].every(usual)) $("more").open = true;
}

function fragment(settings) {
  const pairs = Object.entries(settings).filter(([, value]) => value !== null);
  return new URLSearchParams(pairs).toString();
}

function working() {
  const open = clips.filter((clip) => !clip.end);
  const busy = open.length > 0;
  open.forEach((clip) => clip.card.refresh());
  $("stop").disabled = !busy;
  document.title = busy ? "Making music … musicgen-jax" : "musicgen-jax";
}

function make() {
  const wrong = document.querySelector("#make :invalid");
  if (wrong?.closest("details")) wrong.closest("details").open = true;
  if (!$("make").reportValidity()) return;
  $("error").textContent = "";
  player.wake(about.sample_rate);
  const settings = read();
  history.replaceState(null, "", `#${fragment(settings)}`);
  const made = [];
  const now = Date.now();
  const count = +$("variations").value;
  for (let i = 0; i < count; i++) {
    const seed = (settings.seed + i) % (about.max_seed + 1);
    const clip = new Clip({ ...settings, seed }, { several: count > 1 });
    clip.created = now - i; // the first one is on top
    put(clip);
    made.push(clip);
  }
  player.play(made[0]);
  for (const clip of made) clip.make();
  working();
  say("Making music.");
  made[0].card.node.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

$("make").onsubmit = (event) => (event.preventDefault(), make());
$("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), make();
};
$("dice").onclick = () => (($("seed").value = newSeed()), say(`Seed ${$("seed").value}`));
$("defaults").onclick = () => {
  for (const name of ["temperature", "top_k", "top_p", "cfg_coef"]) $(name).value = about.defaults[name];
};
const stop = () => clips.forEach((clip) => !clip.end && clip.controller.abort());
$("stop").onclick = stop;
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
window.addEventListener("beforeunload", (event) => clips.some((clip) => !clip.end) && event.preventDefault());

// --- The beginning ------------------------------------------------------------------------------

async function begin() {
  try {
    about = await (await ask("app/about")).json();
  } catch {
    return; // `lost` comes back here
  }
  const sound = about.channels === 1 ? "mono" : "stereo";
  $("model").textContent = `${about.model} · ${about.licence} · ${about.sample_rate / 1000} kHz ${sound}`;
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
    button.onclick = () => (($("prompt").value = text), make());
    item.append(button);
    return item;
  });
  $("examples").replaceChildren(...examples);
  $("examples").parentElement.hidden = !examples.length;
  fill({ ...about.defaults, seed: newSeed(), ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) });
  await kept.open();
  if (!kept.db) $("kept").textContent = "This browser keeps no clips: download what you like.";
  await showKept();
  document.body.dataset.ready = "true";
  requestAnimationFrame(player.tick);
}

window.addEventListener("hashchange", () => about && fill(Object.fromEntries(new URLSearchParams(location.hash.slice(1)))));
begin();
