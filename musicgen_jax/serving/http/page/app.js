"use strict";
// The page of `musicgen-jax app`. It talks to its own server only.

const $ = (id) => document.getElementById(id);
const NUMBERS = ["duration", "seed", "temperature", "top_k", "top_p", "cfg_coef"];
const LEAD = 0.08; // seconds between the order to play and the first sample
const AHEAD = 0.3; // seconds that must be there before a clip plays while it is made
const MARGIN = 1.15; // a machine slower than real time is not always equally slow
const WAVE = 0.56; // of a picture is the waveform; below it are the pitches
const BIN = 0.02; // seconds of a bar of the waveform, at its finest
const LOOK = 400; // milliseconds between two looks at what the server has done
const RETRY = 1500; // milliseconds between two looks for a server that is gone

let about; // of the model, see the server
let clips = []; // newest first, as on the page

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const short = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : `${clock(seconds)} min`);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % Math.min(about.max_seed + 1, 1e6); // short enough to say

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

// The body of a request: JSON, or a form if there are sounds. An empty text of a form says null.
function body(settings, given, headers) {
  if (!given.length) return { headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(settings) };
  const form = new FormData();
  for (const [name, value] of Object.entries(settings)) form.append(name, value ?? "");
  for (const { kind, name, file } of given) form.append(kind, file, name);
  return { headers, body: form };
}

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
    const { id, created, settings, several, rate, channels, frames, peaks, program, end, model, lead, given } = clip;
    const entry = { id, created, settings, several, rate, channels, frames, peaks, program, end, model, lead, given };
    try {
      await kept.run("readwrite", (list, sounds) => (list.put(entry), sounds.put(clip.samples().slice(), id)));
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
    this.data = null; // Int16Array, channels interleaved; null: not loaded
    this.frames = 0; // that are here
    this.lead = 0; // of them, those that an earlier clip gave
    this.given = []; // sounds that it was made from
    this.peaks = []; // of BIN seconds each, from 0 to 255
    this.end = null; // done, stopped, lost: null while it is made
    this.underruns = 0;
    this.number = Clip.count++;
    this.several = false; // made with variations, which stand side by side
    this.speed = null; // seconds of music per second
    this.gap = 0; // the longest wait between two parts of it, in seconds
    this.position = 0; // in the queue of the server
    this.steps = 0; // of the language model, that are done
    this.pace = null; // steps per second
    this.left = null; // seconds until it is finished
    this.loudest = 100; // of the picture: quiet music is drawn quiet, but not flat
    Object.assign(this, saved);
    this.total = this.end ? this.frames : Math.round(settings.duration * this.rate);
    const beginning = this.given.find((sound) => sound.kind === "continue_from");
    if (!this.end && beginning?.before?.length) {
      this.seam = beginning.seam;
      this.add(beginning.before);
      this.lead = this.frames;
      this.total += this.lead;
    }
    for (const peak of this.peaks) this.loudest = Math.max(this.loudest, peak);
    this.card = new Card(this);
  }
  get seconds() {
    return this.frames / this.rate;
  }
  get begun() {
    return this.frames > this.lead;
  }
  samples() {
    return this.data?.subarray(0, this.frames * this.channels) ?? new Int16Array(0);
  }
  async load() {
    if (!this.data && this.frames) this.data = await kept.sound(this.id);
  }
  add(part) {
    const at = this.frames * this.channels;
    if (!this.data || this.data.length < at + part.length) {
      const roomier = new Int16Array(Math.max(this.total * this.channels, 2 * at, at + part.length));
      if (this.data) roomier.set(this.data);
      this.data = roomier;
    }
    this.data.set(part, at);
    this.frames += part.length / this.channels;
    this.measure();
  }
  // The loudest sample of each bar that is whole.
  measure() {
    const width = Math.round(BIN * this.rate) * this.channels;
    const whole = Math.floor((this.frames * this.channels) / width);
    for (let at = this.peaks.length * width; this.peaks.length < whole; ) {
      let most = 0;
      for (const end = at + width; at < end; at++) most = Math.max(most, Math.abs(this.data[at]));
      this.peaks.push(Math.min(255, most >> 7));
      this.loudest = Math.max(this.loudest, most >> 7);
    }
  }
  // Frames from..., as many as there are, for the sound card: Float32Array for each channel.
  slice(from) {
    return Array.from({ length: this.channels }, (_, c) =>
      Float32Array.from({ length: this.frames - from }, (_, i) => this.data[(from + i) * this.channels + c] / 32768)
    );
  }
  about() {
    const sounds = this.given.map(({ kind, name }) => [kind, name]);
    return { model: this.model, ...this.settings, ...Object.fromEntries(sounds), program: this.program, made: new Date(this.created).toISOString(), seconds: this.seconds };
  }

  async make() {
    this.controller = new AbortController();
    this.watch();
    try {
      const answer = await ask("v1/audio/generate", {
        method: "POST",
        signal: this.controller.signal,
        ...body({ ...this.settings, stream: true, response_format: "pcm" }, this.given, { "X-Clip": this.id }),
      });
      this.rate = +answer.headers.get("X-Sample-Rate");
      this.channels = +answer.headers.get("X-Channels");
      this.program = answer.headers.get("X-Program");
      await this.receive(answer.body.getReader());
      this.end = "done";
    } catch (error) {
      this.end = error.name === "AbortError" ? "stopped" : "lost";
      if (this.end === "lost") {
        if (this.begun) lost();
        if (!this.begun || error instanceof Refused) $("error").textContent = message(error);
      }
    }
    this.total = this.frames;
    player.arrived(this);
    if (this.begun) {
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
  // The place in the queue and the steps, from the server: also before there is any sound.
  async watch() {
    let began = null;
    while (!this.end) {
      await wait(LOOK);
      const told = await fetch(`app/clips/${this.id}`, { cache: "no-store" }).then((answer) => (answer.ok ? answer.json() : null), () => null);
      if (!told || this.end) continue;
      this.position = told.position;
      this.steps = told.steps;
      const now = performance.now() / 1000;
      if (!told.steps) began = null;
      else if (!began) began = { now, steps: told.steps };
      else if (told.steps > began.steps) this.pace = (told.steps - began.steps) / (now - began.now);
      if (this.pace) this.left = (told.total - told.steps) / this.pace;
      this.card.refresh();
    }
  }
  // Where an earlier clip goes over into this one: both have these moments, and no click is heard.
  blend(part) {
    const count = Math.min(part.length, this.seam?.length ?? 0);
    for (let i = 0; i < count; i++) part[i] = Math.round(this.seam[i] + (part[i] - this.seam[i]) * (i / count));
  }
  async receive(reader) {
    let rest = new Uint8Array(0);
    let began;
    let first = 0;
    let last;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const bytes = new Uint8Array(rest.length + value.length);
      bytes.set(rest);
      bytes.set(value, rest.length);
      const whole = bytes.length - (bytes.length % (2 * this.channels));
      rest = bytes.slice(whole);
      if (!whole) continue;
      const part = new Int16Array(bytes.slice(0, whole).buffer);
      if (!this.begun) this.blend(part);
      this.add(part);
      Clip.sounded = true;
      const now = performance.now() / 1000;
      if (last !== undefined) this.gap = Math.max(this.gap, now - last);
      last = now;
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
    // It must outlast the longest wait so far, and half of that again.
    if (clip.speed === null || there < Math.max(AHEAD, 1.5 * clip.gap)) return false;
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

const NAMES = { prompt: "Description", negative_prompt: "Away from", duration: "Seconds", seed: "Seed", temperature: "Temperature", top_k: "Top-k", top_p: "Top-p", cfg_coef: "Guidance", model: "Model", program: "Program", made: "Made" };

class Card {
  constructor(clip) {
    this.clip = clip;
    this.position = 0; // frame where it plays from
    this.node = $("card").content.firstElementChild.cloneNode(true);
    this.node.id = `clip-${clip.id}`;
    this.node.dataset.several = clip.several;
    this.canvas = this.find("canvas");
    this.spectrum = new Spectrum(clip);
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
    this.find(".reuse").onclick = () => reuse(clip).then(() => $("prompt").focus());
    for (const kind of Object.keys(KINDS)) {
      const button = this.find(`button.${kind}`);
      button.onclick = () => use(clip, kind);
    }
    this.find(".share").onclick = () => share(clip);
    this.find(".delete").onclick = () => remove(clip, true);
    for (const button of this.node.querySelectorAll("[data-form]")) {
      button.onclick = () => download(clip, button.dataset.form);
    }
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    new IntersectionObserver(async ([seen], observer) => {
      if (!seen.isIntersecting || clip.data) return;
      observer.disconnect();
      this.spectrum.grow(await kept.sound(clip.id).catch(() => null)); // a list need not hold the sound
      this.draw();
    }).observe(this.canvas);
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
    for (const kind of Object.keys(KINDS)) this.find(`button.${kind}`).hidden = !about.takes.includes(kind);
    this.seek.max = clip.total / clip.rate;
    this.find(".facts").textContent = [short(clip.total / clip.rate), `seed ${settings.seed}`, clip.model, this.unusual(), ...clip.given.map(({ kind, name }) => `${KINDS[kind].from} ${name}`)].filter(Boolean).join(" · ");
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
    const numbers = ["temperature", "top_k", "top_p", "cfg_coef"].filter(differs).map((name) => `${NAMES[name].toLowerCase()} ${settings[name]}`);
    return [...(settings.negative_prompt ? [`away from ${settings.negative_prompt}`] : []), ...numbers].join(" · ");
  }
  pace() {
    const { clip } = this;
    const pace = clip.pace === null ? [] : [`${clip.pace.toFixed(clip.pace < 10 ? 1 : 0)} steps/s`, `${short(Math.ceil(clip.left))} left`];
    if (!clip.begun) {
      if (clip.position) return `Waits for its turn: number ${clip.position} in the queue.`;
      if (clip.steps) return ["The first sound is being made", ...pace].join(" · ");
      return Clip.sounded ? "Waiting for the first sound." : "Waiting for the first sound. The first clip after a start takes longer: the model is being compiled.";
    }
    const speed = clip.speed === null ? [] : [`${clip.speed.toFixed(clip.speed < 10 ? 1 : 0)} × real time`];
    return [`${clip.seconds.toFixed(1)} of ${short(clip.total / clip.rate)}`, ...speed, ...pace].join(" · ");
  }
  note() {
    const { clip } = this;
    const notes = [];
    const wanted = short(clip.lead / clip.rate + clip.settings.duration);
    if (clip.end === "stopped") notes.push(`Stopped after ${short(clip.seconds)} of ${wanted}.`);
    if (clip.end === "lost") notes.push(`Cut off after ${short(clip.seconds)} of ${wanted}: the server went away.`);
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
  // Bars: what has sounded, what is there, and dots for what is not made yet. Below them the pitches.
  draw() {
    const { canvas, clip } = this;
    const pen = pencil(canvas);
    if (!pen) return;
    const { width, height } = canvas;
    const scale = window.devicePixelRatio || 1;
    const color = colors(canvas);
    const step = 4 * scale;
    const bars = Math.floor(width / step);
    const bins = clip.total / clip.rate / BIN;
    const here = this.position / clip.total;
    const tallest = Math.round(height * WAVE);
    const bright = pen.createLinearGradient(0, 0, width, 0);
    bright.addColorStop(0, color("--accent"));
    bright.addColorStop(1, color("--second"));
    for (let i = 0; i < bars; i++) {
      const first = Math.floor((i / bars) * bins);
      const last = Math.max(first + 1, Math.floor(((i + 1) / bars) * bins));
      let most = -1;
      for (let j = first; j < last && j < clip.peaks.length; j++) most = Math.max(most, clip.peaks[j]);
      const tall = Math.max(2 * scale, (Math.max(0, most) / clip.loudest) ** 0.8 * tallest);
      const played = (i + 0.5) / bars < here;
      pen.fillStyle = most < 0 && !clip.end ? color("--unmade") : played ? bright : color("--unplayed");
      pen.beginPath();
      pen.roundRect(i * step, (tallest - tall) / 2, step * 0.6, tall, step * 0.3);
      pen.fill();
    }
    this.spectrum.grow(clip.data);
    const top = Math.round(tallest + 6 * scale);
    pen.beginPath();
    pen.roundRect(0, top, width, height - top, 5 * scale);
    pen.clip();
    pen.fillStyle = `rgb(${HEAT[0].join(" ")})`;
    pen.fillRect(0, top, width, height - top);
    pen.drawImage(this.spectrum.picture, 0, top, width, height - top);
    pen.fillStyle = "rgb(255 255 255 / .16)";
    pen.fillRect(0, top, width * here, height - top);
  }
}

// A canvas of as many pixels as it covers, wiped; null while it is not shown.
function pencil(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  if (!width) return null;
  Object.assign(canvas, { width, height: Math.round(canvas.clientHeight * scale) });
  return canvas.getContext("2d");
}
function colors(node) {
  const style = getComputedStyle(node);
  return (name) => style.getPropertyValue(name);
}

// The pitches of a clip: time to the right, pitch upwards, an octave as high as any other. It grows
// as the clip does.
class Spectrum {
  static COLUMNS = 600;
  static ROWS = 96;
  constructor(clip) {
    this.clip = clip;
    this.done = 0; // columns
    this.total = clip.total;
    this.picture = document.createElement("canvas");
    Object.assign(this.picture, { width: Spectrum.COLUMNS, height: Spectrum.ROWS });
    this.pen = this.picture.getContext("2d");
    const size = (this.size = clip.rate > 20000 ? 2048 : 1024);
    const [lowest, highest] = [60, clip.rate / 2];
    this.real = new Float32Array(size);
    this.imaginary = new Float32Array(size);
    this.hann = this.real.map((_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    this.bins = Array.from({ length: Spectrum.ROWS + 1 }, (_, i) => (lowest * (highest / lowest) ** (i / Spectrum.ROWS) * size) / clip.rate);
    this.column = this.pen.createImageData(1, Spectrum.ROWS);
  }
  // With samples as far as there are any.
  grow(data) {
    const { clip } = this;
    if (!data) return;
    if (this.total !== clip.total) {
      this.done = 0; // it has become shorter
      this.total = clip.total;
      this.pen.clearRect(0, 0, Spectrum.COLUMNS, Spectrum.ROWS);
    }
    for (; this.done < Spectrum.COLUMNS; this.done++) {
      const start = Math.round(((this.done + 0.5) / Spectrum.COLUMNS) * clip.total - this.size / 2);
      if (!clip.end && start + this.size > clip.frames) return;
      this.draw(data, start);
    }
  }
  draw(data, start) {
    const { clip, real, imaginary, size, bins, column } = this;
    for (let i = 0; i < size; i++) {
      const frame = start + i;
      real[i] = frame < 0 || frame >= clip.frames ? 0 : (this.hann[i] * data[frame * clip.channels]) / 32768;
    }
    imaginary.fill(0);
    fourier(real, imaginary);
    for (let y = 0; y < Spectrum.ROWS; y++) {
      let most = 0;
      const last = Math.min(size / 2 - 1, Math.max(Math.floor(bins[y + 1]), Math.floor(bins[y])));
      for (let k = Math.floor(bins[y]); k <= last; k++) most = Math.max(most, real[k] ** 2 + imaginary[k] ** 2);
      const decibels = 10 * Math.log10(most / (size / 4) ** 2 + 1e-12);
      column.data.set(heat(Math.min(1, Math.max(0, 1 + decibels / 75))), 4 * (Spectrum.ROWS - 1 - y));
    }
    this.pen.putImageData(column, this.done, 0);
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

const HEAT = [[20, 15, 38], [66, 32, 118], [150, 48, 140], [236, 104, 104], [255, 196, 120], [255, 246, 220]];
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

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...clips.map(({ card }) => card), ...sounds].forEach((each) => each.draw()));

// --- What can be done with a clip ---------------------------------------------------------------

async function again(clip) {
  await reuse(clip);
  $("seed").value = newSeed();
  $("variations").value = "1";
  make();
}

async function reuse(clip) {
  fill(clip.settings);
  for (const sound of sounds) await sound.restore(clip.given.find(({ kind }) => kind === sound.kind));
}

// A clip, or what it has up to here, as the sound that the next one begins with or follows.
async function use(clip, kind) {
  await clip.load();
  const sound = sounds.find((each) => each.kind === kind);
  const title = clip.settings.prompt ?? "a clip";
  const { position } = clip.card;
  player.pause();
  const frames = kind === "continue_from" && position > clip.rate / 2 ? Math.round(position) : clip.frames;
  const samples = clip.samples().slice(0, frames * clip.channels);
  if (clip.rate === about.sample_rate && clip.channels === about.channels) sound.take(title, samples, { joined: kind === "continue_from" });
  else await sound.read(wav({ rate: clip.rate, channels: clip.channels, samples: () => samples, about: () => clip.about() }), title);
  if (kind === "continue_from") fill({ prompt: clip.settings.prompt });
  sound.node.scrollIntoView({ block: "center", behavior: "smooth" });
  $("prompt").focus({ preventScroll: true });
  say(`${KINDS[kind].title}: ${title}. Change the text if you like, and make music.`);
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

// --- Sounds of the user's own --------------------------------------------------------------------
// A file or the microphone, decoded by the browser and cut; the server gets the cut part as a wav.

const KINDS = {
  continue_from: { title: "Beginning", about: "The music goes on from it.", from: "goes on from" },
  melody: { title: "Melody", about: "The music follows its tune.", from: "melody of" },
  style: { title: "Style", about: "The music takes its sound.", from: "style of" },
};
const SEAM = 0.03; // seconds
const THUMB = 6; // pixels, half the width of a slider's thumb
const LARGEST = 200e6; // bytes of a file: the browser decodes it as a whole
const PITCHES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
let sounds = []; // one for each kind that the model takes

class Sound {
  constructor(kind) {
    this.kind = kind;
    this.node = $("sound").content.firstElementChild.cloneNode(true);
    const { title, about: text } = KINDS[kind];
    this.node.setAttribute("aria-label", title);
    this.find(".label").textContent = title;
    this.find(".about").textContent = text;
    this.file = this.find("input[type=file]");
    this.file.setAttribute("aria-label", `${title}: choose a file`);
    this.file.onchange = () => this.file.files[0] && this.read(this.file.files[0], this.file.files[0].name);
    this.find(".record").onclick = () => (this.recorder ? this.recorder.stop() : this.record());
    this.find(".record").setAttribute("aria-label", `${title}: record`);
    this.find(".hear").onclick = () => this.hear();
    this.find(".drop").onclick = () => (this.clear(), this.file.focus());
    [this.first, this.last] = [this.find(".from"), this.find(".to")];
    this.first.setAttribute("aria-label", `${title}: start`);
    this.last.setAttribute("aria-label", `${title}: end`);
    this.first.oninput = () => this.cut("first");
    this.last.oninput = () => this.cut("last");
    this.node.ondragover = (event) => (event.preventDefault(), (this.node.dataset.over = true));
    this.node.ondragleave = () => delete this.node.dataset.over;
    this.node.ondrop = (event) => {
      event.preventDefault();
      delete this.node.dataset.over;
      if (event.dataTransfer.files[0]) this.read(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
    };
    new ResizeObserver(() => this.draw()).observe(this.find(".shape"));
    this.clear();
  }
  find(selector) {
    return this.node.querySelector(selector);
  }
  get rate() {
    return about.sample_rate;
  }
  get longest() {
    // The model's window must have room for more than the beginning.
    const most = this.kind === "continue_from" ? about.window - 1 : about.upload_seconds;
    return Math.min(most, about.upload_seconds);
  }
  get seconds() {
    return this.end - this.start;
  }
  wrong(text) {
    this.find(".wrong").textContent = text;
  }
  clear() {
    this.hush();
    this.samples = null;
    this.chroma = null;
    this.file.value = "";
    this.find(".given").hidden = true;
    this.find(".chroma").hidden = true;
    this.wrong("");
  }
  async read(blob, name) {
    this.wrong("");
    if (!blob.size) return this.wrong(`${name} is empty.`);
    if (blob.size > LARGEST) return this.wrong(`${name} has more than ${LARGEST / 1e6} MB: cut it first.`);
    let sound;
    try {
      const context = new OfflineAudioContext(1, 1, this.rate); // decodes at the model's rate
      sound = await context.decodeAudioData(await blob.arrayBuffer());
      if (!sound.length) throw new Error("empty");
    } catch {
      this.file.value = "";
      return this.wrong(`${name} is not sound that this browser can read. WAV, FLAC, MP3 and Ogg work.`);
    }
    this.take(name, interleaved(sound));
  }
  // Samples at the model's rate and channels. `joined`: the new clip keeps all that comes before the
  // part that is cut out.
  take(name, samples, { joined = false, before = null, seam = null, start, end } = {}) {
    this.clear();
    Object.assign(this, { name, samples, joined, before, seam });
    const length = samples.length / about.channels / this.rate;
    this.length = length;
    const usual = this.kind === "continue_from" ? about.window / 2 : this.longest;
    this.end = end ?? (joined ? length : Math.min(length, usual));
    this.start = start ?? Math.max(0, this.end - usual);
    for (const slider of [this.first, this.last]) slider.max = length;
    this.find(".name").textContent = name;
    this.find(".given").hidden = false;
    const peaks = 240;
    const width = Math.max(1, Math.floor(samples.length / peaks));
    this.peaks = Array.from({ length: peaks }, (_, i) => samples.subarray(i * width, (i + 1) * width).reduce((most, value) => Math.max(most, Math.abs(value)), 0));
    this.cut("none");
    // A new beginning leaves room for more; settings that come back stay as they were.
    if (this.kind === "continue_from" && start === undefined && $("duration").valueAsNumber <= this.seconds + 1) {
      $("duration").value = Math.min(about.max_duration, Math.ceil(this.seconds) + about.defaults.duration);
    }
  }
  async restore(given) {
    if (!given) return this.clear();
    const { name, samples, before, seam, file, rate, channels } = given;
    if (rate !== this.rate || channels !== about.channels) return this.read(file, name);
    this.take(name, samples, { before, seam, start: 0, end: samples.length / about.channels / this.rate });
  }
  // The sliders have moved.
  cut(which) {
    const least = Math.min(0.5, this.length);
    if (which === "first") this.start = this.first.valueAsNumber;
    if (which === "last") this.end = this.last.valueAsNumber;
    // Whole half seconds: the codec is compiled for each length.
    if (this.kind === "continue_from" && this.seconds > 0.5) {
      const length = Math.floor(this.seconds * 2 + 1e-6) / 2;
      if (which === "last") this.end = this.start + length;
      else this.start = this.end - length;
    }
    const most = this.longest;
    if (which === "first") {
      this.start = Math.min(this.start, this.length - least);
      this.end = Math.min(Math.max(this.end, this.start + least), this.start + most);
    } else {
      this.end = Math.max(this.end, least);
      this.start = Math.max(0, Math.max(Math.min(this.start, this.end - least), this.end - most));
    }
    this.first.value = this.start;
    this.last.value = this.end;
    const at = (seconds) => `${clock(seconds)}.${Math.floor((seconds % 1) * 10)}`;
    this.first.setAttribute("aria-valuetext", at(this.start));
    this.last.setAttribute("aria-valuetext", at(this.end));
    const whole = this.start === 0 && this.end === this.length;
    this.find(".cut").textContent = `${short(this.seconds)}${whole ? "" : `, from ${at(this.start)} to ${at(this.end)} of ${at(this.length)}`}${this.joined && this.start ? ". The new clip keeps what comes before." : ""}`;
    this.hush();
    this.draw();
    if (this.kind === "melody") {
      clearTimeout(this.soon);
      this.soon = setTimeout(() => this.listen(), which === "none" ? 0 : 400);
    }
  }
  // Samples from one second to another.
  part(start = this.start, end = this.end) {
    const frame = (seconds) => Math.round(seconds * this.rate) * about.channels;
    return this.samples.subarray(frame(start), frame(end));
  }
  // For a request and for the clip: all that is needed to send it again.
  sent() {
    if (!this.samples) return null;
    const samples = this.part().slice();
    const told = { rate: this.rate, channels: about.channels, samples: () => samples, about: () => ({ name: this.name }) };
    let { before, seam } = this;
    if (this.joined) {
      before = this.part(0, this.start).slice();
      seam = this.samples.slice(before.length, before.length + Math.round(SEAM * this.rate) * about.channels);
    }
    return { kind: this.kind, name: this.name, rate: this.rate, channels: about.channels, samples, before, seam, file: wav(told) };
  }
  hush() {
    if (this.source) (this.source.onended = null), this.source.stop();
    this.source = null;
    this.find(".hear").textContent = "Listen";
  }
  hear() {
    if (this.source) return this.hush();
    player.pause();
    player.wake(this.rate);
    const part = this.part();
    const buffer = player.context.createBuffer(about.channels, part.length / about.channels, this.rate);
    for (let c = 0; c < about.channels; c++) buffer.getChannelData(c).set(Float32Array.from({ length: buffer.length }, (_, i) => part[i * about.channels + c] / 32768));
    this.source = player.context.createBufferSource();
    this.source.buffer = buffer;
    this.source.connect(player.output);
    this.source.onended = () => this.hush();
    this.source.start();
    this.find(".hear").textContent = "Pause";
  }
  async record() {
    this.wrong("");
    let stream;
    try {
      // Music, not speech: nothing is made louder, quieter or cleaner.
      const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      if (error.name === "NotAllowedError") return this.wrong("The browser may not use the microphone: allow it for this page.");
      return this.wrong(error.name === "NotFoundError" ? "There is no microphone." : "The microphone does not answer.");
    }
    player.pause();
    const recorder = (this.recorder = new MediaRecorder(stream));
    const parts = [];
    const began = performance.now();
    const most = Math.min(120, about.upload_seconds);
    const button = this.find(".record");
    const text = button.querySelector("span");
    recorder.ondataavailable = (event) => parts.push(event.data);
    const counting = setInterval(() => {
      const passed = (performance.now() - began) / 1000;
      text.textContent = `Stop · ${clock(passed)}`;
      if (passed >= most) recorder.stop();
    }, 200);
    recorder.onstop = () => {
      clearInterval(counting);
      stream.getTracks().forEach((track) => track.stop());
      this.recorder = null;
      button.dataset.on = false;
      button.setAttribute("aria-label", `${KINDS[this.kind].title}: record`);
      text.textContent = "Record";
      say("The recording is there.");
      this.read(new Blob(parts, { type: recorder.mimeType }), "your recording");
    };
    recorder.start();
    button.dataset.on = true;
    button.setAttribute("aria-label", `${KINDS[this.kind].title}: stop recording`);
    text.textContent = "Stop · 0:00";
    say("Recording.");
  }
  // Asks the server what it hears, which is what the model will hear.
  async listen() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const { file } = this.sent();
    let heard;
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      heard = await (await ask("app/chroma", { method: "POST", headers, body: file })).json();
    } catch (error) {
      return this.wrong(message(error));
    }
    if (turn !== this.turn || !this.samples) return;
    this.chroma = heard.pitches;
    const notes = heard.pitches.filter((pitch, i) => pitch !== heard.pitches[i - 1]).map((pitch) => PITCHES[pitch]);
    const canvas = this.find(".chroma");
    canvas.hidden = false;
    canvas.setAttribute("aria-label", `The melody as the model hears it: ${notes.slice(0, 60).join(" ")}`);
    this.draw();
  }
  draw() {
    if (!this.samples) return;
    this.drawShape();
    if (this.chroma) this.drawChroma();
  }
  drawShape() {
    const canvas = this.find(".shape");
    const pen = pencil(canvas);
    if (!pen) return;
    const color = colors(canvas);
    const { width, height } = canvas;
    const loudest = Math.max(3000, ...this.peaks);
    const inset = THUMB * (window.devicePixelRatio || 1); // as the middle of a slider's thumb
    const across = width - 2 * inset;
    const step = across / this.peaks.length;
    this.peaks.forEach((peak, i) => {
      const at = ((i + 0.5) / this.peaks.length) * this.length;
      const tall = Math.max(2, (peak / loudest) * height * 0.9);
      pen.fillStyle = color(at >= this.start && at <= this.end ? "--accent" : "--unplayed");
      pen.fillRect(inset + i * step, (height - tall) / 2, step * 0.65, tall);
    });
    pen.fillStyle = color("--shade");
    pen.fillRect(inset, 0, (across * this.start) / this.length, height);
    pen.fillRect(inset + (across * this.end) / this.length, 0, across * (1 - this.end / this.length), height);
  }
  drawChroma() {
    const canvas = this.find(".chroma");
    const pen = pencil(canvas);
    if (!pen) return;
    const { width, height } = canvas;
    const row = height / 12;
    const step = width / this.chroma.length;
    for (let pitch = 0; pitch < 12; pitch++) {
      const black = [1, 3, 6, 8, 10].includes(pitch);
      pen.fillStyle = `rgb(${HEAT[0].map((value) => value + (black ? 0 : 9)).join(" ")})`;
      const top = Math.round(height - (pitch + 1) * row);
      pen.fillRect(0, top, width, Math.round(height - pitch * row) - top);
    }
    this.chroma.forEach((pitch, i) => {
      pen.fillStyle = `hsl(${250 + pitch * 14} 85% 72%)`;
      pen.fillRect(i * step, height - (pitch + 1) * row + row * 0.1, step + 0.5, row * 0.8);
    });
  }
}

// Int16Array with the model's channels: mono goes to both of two, and more than two become one.
function interleaved(sound) {
  const C = about.channels;
  const given = Array.from({ length: sound.numberOfChannels }, (_, c) => sound.getChannelData(c));
  const mean = (i) => given.reduce((sum, channel) => sum + channel[i], 0) / given.length;
  const out = new Int16Array(sound.length * C);
  for (let i = 0; i < sound.length; i++) {
    for (let c = 0; c < C; c++) {
      const value = given.length === C ? given[c][i] : mean(i);
      out[i * C + c] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
    }
  }
  return out;
}

// --- The form -----------------------------------------------------------------------------------

function read() {
  const settings = { prompt: $("prompt").value.trim() || null };
  const negative = $("negative_prompt").value.trim();
  if (negative) settings.negative_prompt = negative;
  for (const name of NUMBERS) settings[name] = $(name).valueAsNumber;
  return settings;
}

function fill(settings) {
  if ("prompt" in settings) {
    $("prompt").value = settings.prompt ?? "";
    $("negative_prompt").value = settings.negative_prompt ?? "";
  }
  for (const name of NUMBERS) if (Number.isFinite(+settings[name])) $(name).value = settings[name];
  const usual = (name) => +$(name).value === about.defaults[name];
  if ($("negative_prompt").value || !["temperature", "top_k", "top_p", "cfg_coef"].every(usual)) $("more").open = true;
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
  sounds.forEach((sound) => sound.hush());
  player.wake(about.sample_rate);
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
$("dice").onclick = () => (($("seed").value = newSeed()), say(`Seed ${$("seed").value}`));
$("defaults").onclick = () => {
  for (const name of ["temperature", "top_k", "top_p", "cfg_coef"]) $(name).value = about.defaults[name];
};
const stop = () => clips.forEach((clip) => !clip.end && clip.controller.abort());
$("stop").onclick = stop;
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
window.addEventListener("beforeunload", (event) => clips.some((clip) => !clip.end) && event.preventDefault());

// --- Models -------------------------------------------------------------------------------------

function showModels() {
  const group = (label, choices) => {
    const node = Object.assign(document.createElement("optgroup"), { label });
    node.append(...choices.map(({ name }) => new Option(name.replace("facebook/", ""), name, false, name === about.model)));
    return choices.length ? [node] : [];
  };
  const listed = about.choices.length ? about.choices : [{ name: about.model, what: "text", ready: true }];
  $("model").replaceChildren(...group("On this machine", listed.filter(({ ready }) => ready)), ...group("Not here yet", listed.filter(({ ready }) => !ready)));
  $("model").value = about.model;
  const { what } = listed.find(({ name }) => name === about.model) ?? listed[0];
  $("model-facts").textContent = `${what} · ${about.licence} · ${about.sample_rate / 1000} kHz ${about.channels === 1 ? "mono" : "stereo"}`;
  $("missing").hidden = !about.notice;
  $("missing").textContent = about.notice;
}

$("model").onchange = async () => {
  const name = $("model").value;
  const choice = about.choices.find((each) => each.name === name);
  $("missing").hidden = true;
  if (!choice || name === about.model) return;
  if (!choice.ready) {
    $("model").value = about.model;
    const command = Object.assign(document.createElement("code"), { textContent: choice.way });
    $("missing").replaceChildren(`${name} is not on this machine${choice.way ? ". This downloads and converts it, if you accept its licence: " : `: ${choice.what}`}`, ...(choice.way ? [command] : []));
    $("missing").hidden = false;
    return;
  }
  if (clips.some((clip) => !clip.end) && !confirm("Stop the clips that are being made?")) return void ($("model").value = about.model);
  stop();
  player.pause();
  try {
    await ask("app/model", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name }) });
  } catch (error) {
    $("model").value = about.model;
    $("error").textContent = message(error);
    return;
  }
  await changed(name);
};

// Waits for the server that has the other model; until it is there, nothing can be made.
async function changed(name) {
  document.body.dataset.loading = true;
  $("go").disabled = $("model").disabled = true;
  $("missing").textContent = `Loading ${name} …`;
  $("missing").hidden = false;
  const before = about.started;
  for (let failed = 0; ; ) {
    await wait(500);
    const told = await fetch("app/about", { cache: "no-store" }).then((answer) => answer.json(), () => null);
    if (told && told.started !== before) break;
    failed = told ? 0 : failed + 1;
    if (failed === 6) lost(); // while it loads it takes questions and answers later
  }
  delete document.body.dataset.loading;
  $("go").disabled = $("model").disabled = false;
  await learn();
  say(`${about.model} is ready.`);
}

// --- The beginning ------------------------------------------------------------------------------

// What there is to know of the model.
async function learn() {
  const given = about && sounds.map((sound) => sound.sent()).filter(Boolean);
  about = await (await ask("app/about")).json();
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
    button.onclick = () => (($("prompt").value = text), make());
    item.append(button);
    return item;
  });
  $("examples").replaceChildren(...examples);
  $("examples").parentElement.hidden = !examples.length;
  sounds = about.takes.map((kind) => new Sound(kind));
  $("sounds").querySelectorAll(".sound").forEach((node) => node.remove());
  $("sounds").append(...sounds.map((sound) => sound.node));
  for (const each of given ?? []) sounds.find(({ kind }) => kind === each.kind)?.restore(each);
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
  if (!kept.db) $("kept").textContent = "This browser keeps no clips: download what you like.";
  await showKept();
  document.body.dataset.ready = "true";
  requestAnimationFrame(player.tick);
}

window.addEventListener("hashchange", () => about && fill(Object.fromEntries(new URLSearchParams(location.hash.slice(1)))));
begin();
