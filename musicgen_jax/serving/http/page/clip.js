"use strict";
// A clip: its samples while they arrive, and everything that is known about it.

const BIN = 0.02; // seconds of a bar of the waveform, at its finest
const ROOM = [60, 120, 300]; // seconds of endless music that a card has room for, one after the other
const DROP = 0.1; // of the longest room becomes free again
const LOOK = 400; // milliseconds between two looks at what the server has done

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
    this.lead = 0; // those that an earlier clip gave
    this.dropped = 0; // of endless music, those before the first one that is here
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
    this.stream = null; // the server's name for it, while it is made
    this.heard = null; // what the model understood of the description
    this.kept = false; // in this browser, and not on this page alone
    this.loudest = 100; // of the picture: quiet music is drawn quiet, but not flat
    Object.assign(this, saved);
    this.total = this.end ? this.frames : Math.round((this.endless ? ROOM[0] : settings.duration) * this.rate);
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
  get endless() {
    return this.settings.endless === true;
  }
  get begun() {
    return this.frames + this.dropped > this.lead;
  }
  get start() {
    return this.dropped / this.rate; // seconds before the first sample that is here
  }
  // The changes so far and those to come, from the server.
  learn(schedule) {
    if (schedule.length) this.settings.schedule = schedule;
  }
  samples() {
    return this.data?.subarray(0, this.frames * this.channels) ?? new Int16Array(0);
  }
  async load() {
    if (!this.data && this.frames) this.data = await kept.sound(this.id);
  }
  // Room for more endless music: a longer picture, and then no more of the oldest part.
  widen(more) {
    const needed = this.frames + more;
    if (needed <= this.total) return;
    const seconds = ROOM.find((seconds) => seconds * this.rate >= needed);
    if (seconds) this.total = Math.round(seconds * this.rate);
    else this.drop(Math.round((DROP * ROOM.at(-1)) / BIN));
  }
  // Adds samples in parts that always find room.
  addParts(samples) {
    const most = Math.round(0.1 * ROOM[0] * this.rate) * this.channels;
    for (let at = 0; at < samples.length; at += most) this.add(samples.subarray(at, at + most));
  }
  // Forgets the oldest bars.
  drop(bars) {
    const frames = bars * Math.round(BIN * this.rate);
    this.data.copyWithin(0, frames * this.channels, this.frames * this.channels);
    this.peaks.splice(0, bars);
    this.frames -= frames;
    this.dropped += frames;
    this.card.dropped(frames);
    player.dropped(this, frames);
  }
  add(part) {
    if (this.endless) this.widen(part.length / this.channels);
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
    const begins = this.dropped ? { begins: this.start } : {}; // what was before is not kept
    const heard = this.heard === null ? {} : { heard: this.heard };
    return { model: this.model, ...this.settings, ...Object.fromEntries(sounds), ...heard, program: this.program, made: new Date(this.created).toISOString(), seconds: this.seconds, ...begins };
  }

  async make() {
    this.controller = new AbortController();
    this.watch();
    try {
      const answer = await ask("v1/audio/generate", {
        method: "POST",
        signal: this.controller.signal,
        ...body({ model: this.model, ...this.settings, stream: true, response_format: "pcm" }, this.given, { "X-Clip": this.id }),
      });
      this.rate = +answer.headers.get("X-Sample-Rate");
      this.channels = +answer.headers.get("X-Channels");
      this.program = answer.headers.get("X-Program");
      this.stream = answer.headers.get("X-Stream-Id");
      this.heard = JSON.parse(answer.headers.get("X-Heard"));
      await this.receive(answer.body.getReader());
      this.end = "done";
    } catch (error) {
      this.end = error.name === "AbortError" ? "stopped" : "lost";
      if (this.end === "lost") {
        if (this.begun) lost();
        if (!this.begun || error instanceof Refused) $("error").textContent = message(error);
        if (error instanceof Refused) relearn();
      }
    }
    this.total = this.frames;
    if (this.endless && player.clip === this) player.pause();
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
      this.card.steering.place(told.schedule);
      const now = performance.now() / 1000;
      if (!told.steps) began = null;
      else if (!began) began = { now, steps: told.steps };
      else if (told.steps > began.steps && told.steps !== told.total) this.pace = (told.steps - began.steps) / (now - began.now);
      // After the last step the codec is still at work, and nobody knows for how long.
      this.left = this.pace && told.total > told.steps ? (told.total - told.steps) / this.pace : null;
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
      this.addParts(part);
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
