"use strict";
// A file or the microphone, decoded by the browser and cut; the server gets the cut part as a wav.

const KINDS = {
  continue_from: { title: "Beginning", about: "The music continues from it.", from: "goes on from" },
  melody: { title: "Melody", about: "The music follows its tune.", from: "melody of" },
  style: { title: "Style", about: "The music imitates its sound.", from: "style of" },
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
    this.find(".record").onclick = () => (this.recorder ? this.finish() : this.record());
    this.find(".record").setAttribute("aria-label", `${title}: record`);
    this.find(".hear").onclick = () => this.hear();
    this.find(".drop").onclick = () => (this.clear(), this.file.focus());
    [this.first, this.last] = [this.find(".from"), this.find(".to")];
    this.first.setAttribute("aria-label", `${title}: start`);
    this.last.setAttribute("aria-label", `${title}: end`);
    this.first.oninput = () => this.cut("first");
    this.last.oninput = () => this.cut("last");
    this.node.ondragover = (event) => carriesFiles(event) && (event.preventDefault(), (this.node.dataset.over = true));
    this.node.ondragleave = () => delete this.node.dataset.over;
    this.node.ondrop = (event) => {
      delete this.node.dataset.over;
      if (!carriesFiles(event)) return;
      event.preventDefault();
      const [file, ...others] = event.dataTransfer.files;
      if (others.length) this.wrong(`Drop one file, not ${others.length + 1}.`);
      else if (file) this.read(file, file.name);
    };
    new ResizeObserver(() => this.draw()).observe(this.find(".shape"));
    this.reads = this.asks = 0; // only the last file that is read counts, and the last answer
    this.reading = null; // a promise while a file is read or recorded: false if it holds no sound
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
  // Returns false, as `decode` does for a file without sound.
  wrong(text) {
    this.find(".wrong").textContent = text;
    return false;
  }
  clear() {
    this.hush();
    clearTimeout(this.soon);
    this.asks += 1;
    this.samples = null;
    this.chroma = null;
    this.file.value = "";
    this.find(".given").hidden = true;
    this.find(".chroma").hidden = true;
    this.wrong("");
  }
  // The user chooses again: a file that is still being read or recorded no longer counts.
  supersede() {
    this.reads += 1;
    this.finish();
  }
  track(reading) {
    this.reading = reading;
    reading.then(() => this.reading === reading && (this.reading = null));
    return reading;
  }
  read(blob, name) {
    $("error").textContent = "";
    this.supersede();
    return this.track(this.decode(blob, name, this.reads));
  }
  async decode(blob, name, turn) {
    if (turn !== this.reads) return true; // another one was chosen meanwhile
    this.wrong("");
    if (!blob.size) return this.wrong(`${name} is empty.`);
    if (blob.size > LARGEST) return this.wrong(`${name} has more than ${LARGEST / 1e6} MB: cut it first.`);
    let sound;
    try {
      const context = new OfflineAudioContext(1, 1, this.rate); // decodes at the model's rate
      sound = await context.decodeAudioData(await blob.arrayBuffer());
      if (!sound.length) throw new Error("empty");
    } catch {
      if (turn !== this.reads) return true;
      this.file.value = "";
      return this.wrong(`${name} is not sound that this browser can read. WAV, FLAC, MP3 and Ogg work.`);
    }
    if (turn === this.reads) this.take(name, interleaved(sound));
    return true;
  }
  // Samples at the model's rate and channels. `joined`: the new clip keeps all that comes before the
  // part that is cut out.
  take(name, samples, { joined = false, before = null, seam = null, start, end } = {}) {
    this.supersede();
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
    this.supersede();
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
    this.first.setAttribute("aria-valuetext", exact(this.start));
    this.last.setAttribute("aria-valuetext", exact(this.end));
    const whole = this.start === 0 && this.end === this.length;
    this.find(".cut").textContent = `${short(this.seconds)}${whole ? "" : `, from ${exact(this.start)} to ${exact(this.end)} of ${exact(this.length)}`}${this.joined && this.start ? ". The new clip keeps what comes before." : ""}`;
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
    if (this.allowing) return; // the browser still asks whether it may
    this.wrong("");
    let stream;
    try {
      // Music, not speech: nothing is made louder, quieter or cleaner.
      const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      this.allowing = navigator.mediaDevices.getUserMedia({ audio });
      stream = await this.allowing;
    } catch (error) {
      if (error.name === "NotAllowedError") return this.wrong("The browser may not use the microphone: allow it for this page.");
      return this.wrong(error.name === "NotFoundError" ? "There is no microphone." : "The microphone does not answer.");
    } finally {
      this.allowing = null;
    }
    const close = () => stream.getTracks().forEach((track) => track.stop());
    if (!this.node.isConnected) return close(); // another model was chosen meanwhile
    player.pause();
    const turn = ++this.reads;
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
      if (passed >= most) this.finish();
    }, 200);
    const stopped = new Promise((resolve) => (recorder.onstop = resolve));
    const heard = stopped.then(() => {
      clearInterval(counting);
      close();
      this.recorder = null;
      button.dataset.on = false;
      button.setAttribute("aria-label", `${KINDS[this.kind].title}: record`);
      text.textContent = "Record";
      if (turn === this.reads) say("The recording is ready.");
      return this.decode(new Blob(parts, { type: recorder.mimeType }), "your recording", turn);
    });
    recorder.start();
    this.track(heard);
    button.dataset.on = true;
    button.setAttribute("aria-label", `${KINDS[this.kind].title}: stop recording`);
    text.textContent = "Stop · 0:00";
    say("Recording.");
  }
  finish() {
    if (this.recorder?.state === "recording") this.recorder.stop();
  }
  // Asks the server what it hears, which is what the model will hear.
  async listen() {
    const turn = ++this.asks;
    const { file } = this.sent();
    let heard;
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      heard = await (await ask("app/chroma", { method: "POST", headers, body: file })).json();
    } catch (error) {
      if (turn === this.asks) this.wrong(message(error));
      return;
    }
    if (turn !== this.asks) return;
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

const carriesFiles = (event) => event.dataTransfer.types.includes("Files"); // and not text or a link

// A file that is dropped beside the sounds would take the place of the page.
document.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented || !carriesFiles(event)) return;
  event.preventDefault();
  if (sounds.length) $("error").textContent = `Drop the file on ${sounds.map(({ kind }) => KINDS[kind].title).join(" or ")}.`;
});

// Ends recordings, and waits until every file is read. False if one holds no sound.
async function allRead() {
  sounds.forEach((sound) => sound.finish());
  const read = await Promise.all(sounds.map(({ reading }) => reading));
  return !read.includes(false);
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
