"use strict";
// The page of `musicgen-jax app`. It talks to its own server only. Its scripts share their names and
// are loaded in the order of index.html; this one has what all of them use.

const $ = (id) => document.getElementById(id);

let about; // of the model, see the server
let clips = []; // newest first, as on the page

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const exact = (seconds) => `${clock(seconds)}.${Math.floor((seconds % 1) * 10)}`;
const short = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : `${clock(seconds)} min`);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % Math.min(about.max_seed + 1, 1e6); // short enough to say

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}
