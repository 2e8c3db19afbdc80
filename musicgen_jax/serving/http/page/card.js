"use strict";
// What the page shows of a clip.

const WAVE = 0.56; // of a picture is the waveform; below it are the pitches
const NAMES = { prompt: "Description", negative_prompt: "Away from", duration: "Seconds", seed: "Seed", temperature: "Temperature", top_k: "Top-k", top_p: "Top-p", cfg_coef: "Guidance", schedule: "Changes", heard: "Understood", model: "Model", program: "Program", made: "Made" };

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
    this.scenes = new Scenes(this);
    this.steering = new Steering(this);
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
    this.find("progress").hidden = clip.endless;
    this.find(".facts").textContent = [this.length(), `seed ${settings.seed}`, clip.model, this.unusual(), ...clip.given.map(({ kind, name }) => `${KINDS[kind].from} ${name}`)].filter(Boolean).join(" · ");
    this.find(".heard").textContent = clip.heard === null ? "" : `${clip.model} heard: ${clip.heard}`;
    this.find(".making").hidden = !!clip.end;
    this.find(".delete").hidden = !clip.end;
    this.find(".actions").hidden = this.find(".all").hidden = !clip.end;
    this.find(".note").textContent = this.note();
    this.scenes.refresh();
    this.steering.refresh();
    if (!clip.end) {
      this.find("progress").value = clip.frames / clip.total;
      this.find(".pace").textContent = this.pace();
    } else if (!this.find("dl").childElementCount) {
      this.find("dl").replaceChildren(...Object.entries(clip.about()).filter(([name, value]) => NAMES[name] && value != null).map(row));
    }
    this.move(playing ? player.frame() : this.position);
  }
  length() {
    const { clip } = this;
    if (!clip.endless) return short(clip.total / clip.rate);
    return clip.end ? `${short(clip.seconds)} of endless music` : "endless";
  }
  unusual() {
    const { settings } = this.clip;
    const differs = (name) => settings[name] !== about.defaults[name];
    const numbers = ["temperature", "top_k", "top_p", "cfg_coef"].filter(differs).map((name) => `${NAMES[name].toLowerCase()} ${settings[name]}`);
    return [...(settings.negative_prompt ? [`away from ${settings.negative_prompt}`] : []), ...numbers].join(" · ");
  }
  pace() {
    const { clip } = this;
    const left = clip.left === null ? [] : [`${short(Math.ceil(clip.left))} left`];
    const pace = clip.pace === null ? [] : [`${clip.pace.toFixed(clip.pace < 10 ? 1 : 0)} steps/s`, ...left];
    if (!clip.begun) {
      if (clip.position) return `Waits for its turn: number ${clip.position} in the queue.`;
      if (clip.steps) return ["The first sound is being made", ...pace].join(" · ");
      return Clip.sounded ? "Waiting for the first sound." : "Waiting for the first sound. The first clip after a start takes longer: the model is being compiled.";
    }
    // Endless music is made at the pace of listening: its speed says nothing.
    if (clip.endless) return `${clock(clip.start + clip.seconds)} so far${clip.dropped ? ` · the last ${clock(ROOM.at(-1))} minutes are kept` : ""}`;
    const speed = clip.speed === null ? [] : [`${clip.speed.toFixed(clip.speed < 10 ? 1 : 0)} × real time`];
    return [`${clip.seconds.toFixed(1)} of ${short(clip.total / clip.rate)}`, ...speed, ...pace].join(" · ");
  }
  note() {
    const { clip } = this;
    const notes = [];
    if (clip.endless) return this.endlessNote();
    const wanted = short(clip.lead / clip.rate + clip.settings.duration);
    if (clip.end === "stopped") notes.push(`Stopped after ${short(clip.seconds)} of ${wanted}.`);
    if (clip.end === "lost") notes.push(`Cut off after ${short(clip.seconds)} of ${wanted}: the server went away.`);
    if (player.clip === clip && player.holding && clip.speed !== null && clip.speed < 1) {
      notes.push(`This machine makes music at ${clip.speed.toFixed(2)} × real time: it plays as soon as it can play to the end.`);
    }
    if (clip.underruns) notes.push(`Paused ${clip.underruns === 1 ? "once" : `${clip.underruns} times`} to wait for more.`);
    return notes.join(" ");
  }
  endlessNote() {
    const { clip } = this;
    const notes = [];
    const reached = clock(clip.start + clip.seconds);
    if (clip.end === "stopped" || clip.end === "done") notes.push(`Stopped at ${reached}.`);
    if (clip.end === "lost") notes.push(`Cut off at ${reached}: the server went away.`);
    if (clip.end && clip.dropped) notes.push(`The music kept here begins at ${clock(clip.start)}; earlier music is not kept.`);
    if (!clip.end && clip.speed !== null && clip.speed * MARGIN < 1) notes.push(`This machine makes music at ${clip.speed.toFixed(2)} × real time: it pauses now and then to wait for more.`);
    if (clip.underruns) notes.push(`Paused ${clip.underruns === 1 ? "once" : `${clip.underruns} times`} to wait for more.`);
    return notes.join(" ");
  }
  // The oldest frames are gone.
  dropped(frames) {
    this.position = Math.max(0, this.position - frames);
    this.spectrum.restart();
  }
  move(frame) {
    const { clip } = this;
    this.position = Math.max(0, frame);
    const seconds = this.position / clip.rate;
    const whole = clip.endless && !clip.end ? "∞" : clock(clip.start + clip.total / clip.rate);
    this.seek.value = seconds;
    this.seek.setAttribute("aria-valuetext", `${clock(clip.start + seconds)} of ${whole === "∞" ? "endless music" : whole}`);
    this.find(".time").textContent = `${clock(clip.start + seconds)} / ${whole}`;
    this.scenes.move(this.position);
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

function row([name, value]) {
  const line = document.createElement("div");
  const [term, detail] = ["dt", "dd"].map((tag) => document.createElement(tag));
  term.textContent = NAMES[name];
  detail.textContent = name === "schedule" ? value.map(planned).join(" · ") : value;
  line.append(term, detail);
  return line;
}
