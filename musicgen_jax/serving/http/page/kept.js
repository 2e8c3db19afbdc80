"use strict";
// Clips that this browser keeps.

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
  // Null if they cannot be read.
  all: () => kept.run("readonly", (list) => list.getAll()).catch(() => null),
  sound: (id) => kept.run("readonly", (_, sounds) => sounds.get(id)),
  async add(clip) {
    const { id, created, settings, several, rate, channels, frames, peaks, program, end, model, lead, given, dropped, heard } = clip;
    const entry = { id, created, settings, several, rate, channels, frames, peaks, program, end, model, lead, given, dropped, heard };
    try {
      await kept.run("readwrite", (list, sounds) => (list.put(entry), sounds.put(clip.samples().slice(), id)));
      clip.kept = true;
    } catch {
      $("kept").textContent = "This browser cannot keep more clips: download the ones that you want to keep.";
    }
  },
  remove: (id) => kept.run("readwrite", (list, sounds) => (list.delete(id), sounds.delete(id))).catch(() => {}),
};
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("musicgen-jax") : { postMessage() {} };
tabs.onmessage = () => (showKept(), relearn());
