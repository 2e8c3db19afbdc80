"use strict";
// What can be done with a clip.

async function again(clip) {
  if (!(await reuse(clip))) return;
  $("seed").value = newSeed();
  $("variations").value = "1";
  make();
}

// False if this model does not take all that the clip was made from.
async function reuse(clip) {
  $("error").textContent = "";
  fill(clip.settings);
  for (const sound of sounds) await sound.restore(clip.given.find(({ kind }) => kind === sound.kind));
  const left = clip.given.find(({ kind }) => !about.takes.includes(kind));
  if (left) $("error").textContent = `${about.model} takes no ${left.kind}: choose ${clip.model}, which made this clip, or make one without.`;
  return !left;
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
  if (kind === "continue_from") fill({ prompt: sceneAt(clip, frames).prompt });
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
  const refused = clip.card.find(".refused");
  refused.textContent = "";
  try {
    await clip.load();
    blob = await asFile(clip, form);
  } catch (error) {
    refused.textContent = `There is no ${form.toUpperCase()}. ${message(error)}`;
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
  const saved = await kept.all();
  if (!saved) return;
  saved.sort((a, b) => a.created - b.created);
  const there = new Set(saved.map((entry) => entry.id));
  for (const clip of clips) if (clip.kept && !there.has(clip.id)) remove(clip, false);
  const shown = new Set(clips.map((clip) => clip.id));
  for (const entry of saved) if (!shown.has(entry.id)) put(new Clip(entry.settings, { ...entry, kept: true }));
}

function put(clip) {
  clips.unshift(clip);
  clips.sort((a, b) => b.created - a.created);
  const after = clips[clips.indexOf(clip) + 1];
  $("clips").insertBefore(clip.card.node, after?.card.node ?? null);
  $("empty").hidden = true;
  clip.card.draw();
}
