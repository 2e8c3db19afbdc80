"use strict";
// Changes a clip while it is made.

class Steering {
  constructor(card) {
    this.card = card;
    this.clip = card.clip;
    this.form = card.find(".steer");
    this.button = this.form.querySelector("button");
    const field = (name) => this.form.querySelector(`.${name}-to`);
    this.fields = { prompt: field("prompt"), negative_prompt: field("negative"), cfg_coef: field("cfg"), temperature: field("temperature") };
    this.waiting = null; // a change that has no place yet, and what the server said of it
    this.placed = 0; // seconds of the last change that was made here
    this.shown = {}; // what a field said before anybody edited it
    for (const [name, input] of Object.entries(this.fields)) this.show(name, input, this.before()[name]);
    this.form.onsubmit = (event) => (event.preventDefault(), this.steer());
  }
  // What holds at the beginning.
  before() {
    const { prompt, negative_prompt, cfg_coef, temperature } = this.clip.settings;
    return { prompt: prompt ?? "", negative_prompt: negative_prompt ?? "", cfg_coef, temperature };
  }
  show(name, input, value) {
    if (input.value !== String(value)) input.value = value;
    this.shown[name] = input.value;
  }
  // What holds for the music that is made next.
  inForce() {
    const { clip } = this;
    const made = Math.max(this.placed, (clip.dropped + clip.frames - clip.lead) / clip.rate);
    const cues = (clip.settings.schedule ?? []).filter(({ seconds }) => seconds <= made);
    return Object.assign(this.before(), ...cues, this.waiting?.changes);
  }
  // A field that nobody has edited follows the changes of the schedule.
  follow() {
    const now = this.inForce();
    for (const [name, input] of Object.entries(this.fields)) if (input.value === this.shown[name]) this.show(name, input, now[name]);
    return now;
  }
  refresh() {
    const open = !this.clip.end && this.clip.stream !== null;
    if (open) this.follow();
    // Whoever was typing when the music ended goes on at the play button.
    if (!open && this.form.contains(document.activeElement)) this.card.find(".play").focus({ preventScroll: true });
    this.form.hidden = !open;
    if (this.clip.end && this.waiting) {
      this.refuse(`${inWords(this.waiting.changes)}: too late, the music has ended.`);
      this.waiting = null;
    }
    // A text model needs room for guidance against a text from the beginning on.
    const { settings } = this.clip;
    const possible = about.text_in_front || settings.negative_prompt || settings.schedule?.some((cue) => cue.negative_prompt);
    this.fields.negative_prompt.disabled = !possible;
    this.fields.negative_prompt.placeholder = possible ? "" : "Only if the clip began with one";
  }
  // What is new in the fields; null if a number is missing or out of range.
  changes() {
    const changes = {};
    const now = this.follow();
    for (const [name, input] of Object.entries(this.fields)) {
      if (input.disabled) continue;
      const isNumber = input.type === "number";
      if (isNumber && (!input.validity.valid || input.value === "")) return this.refuse(`${NAMES[name]} must be a number from ${input.min} to ${input.max}.`, input);
      const value = isNumber ? input.valueAsNumber : input.value.trim();
      if (value !== now[name]) changes[name] = value;
    }
    if (!Object.keys(changes).length) return this.refuse("Change the text or a number first.", this.fields.prompt);
    return changes;
  }
  refuse(text, input) {
    this.card.find(".steered").textContent = "";
    this.card.find(".refused").textContent = text;
    if (input?.closest("details")) input.closest("details").open = true;
    input?.focus();
    return null;
  }
  async steer() {
    const changes = this.changes();
    if (!changes || this.button.disabled) return;
    this.button.disabled = true;
    const sent = Object.fromEntries(Object.keys(changes).map((name) => [name, this.fields[name].value]));
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await ask(`v1/audio/streams/${this.clip.stream}/steer`, { method: "POST", headers, body: JSON.stringify(changes) });
      const said = await answer.json();
      Object.assign(this.shown, sent);
      this.took(changes, said);
    } catch (error) {
      this.refuse(message(error));
    }
    this.button.disabled = false;
  }
  // The server has taken a change, and says from when on it counts.
  took(changes, said) {
    const { clip, card } = this;
    if (said.seconds !== null) this.placed = Math.max(this.placed, said.seconds);
    clip.learn(said.schedule);
    this.waiting = said.seconds === null ? { changes, said } : null;
    card.find(".refused").textContent = "";
    card.find(".steered").textContent = this.inWords(changes, said);
    say(card.find(".steered").textContent);
    card.refresh();
  }
  // A change that waited may have its place by now.
  place(schedule) {
    if (!this.waiting) return;
    const { changes, said } = this.waiting;
    const known = said.schedule.map((cue) => JSON.stringify(cue)); // also the same change, made earlier
    const cue = schedule.find((cue) => !known.includes(JSON.stringify(cue)) && Object.entries(changes).every(([name, value]) => cue[name] === value));
    if (cue) this.took(changes, { ...said, seconds: cue.seconds, schedule });
  }
  inWords(changes, { seconds, heard }) {
    const { clip } = this;
    const what = inWords(changes);
    const lines = [];
    if (seconds === null) lines.push(`${what}: counts as soon as the clip goes on.`);
    else lines.push(`From ${clock(seconds + clip.lead / clip.rate)} on: ${what}.`);
    const isText = "prompt" in changes || "negative_prompt" in changes;
    if (isText && about.text_in_front) lines.push("In this model a new text takes effect with the next window.");
    if (heard) lines.push(`${clip.model} heard: ${heard}.`);
    return lines.join(" ");
  }
}
