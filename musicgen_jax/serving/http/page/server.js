"use strict";
// Questions to the server, and what happens when it is gone.

const RETRY = 1500; // milliseconds between two looks for a server that is gone

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
  $("offline").textContent = "The server does not answer. Start musicgen-jax app again: this page continues by itself. Your clips are kept in this browser.";
  $("offline").hidden = false;
  while (!(await fetch("health", { cache: "no-store" }).then((answer) => answer.ok, () => false))) await wait(RETRY);
  looking = false;
  $("offline").hidden = true;
  $("error").textContent = "";
  say("The server answers again.");
  if (!about) begin();
  else await relearn();
}

const message = (error) => (error instanceof Refused ? `The server says: ${error.message}.` : "The server does not answer.");

// The body of a request: JSON, or a form if there are sounds. An empty text of a form says null.
function body(settings, given, headers) {
  if (!given.length) return { headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(settings) };
  const form = new FormData();
  for (const [name, value] of Object.entries(settings)) form.append(name, value === null ? "" : typeof value === "string" ? value : JSON.stringify(value));
  for (const { kind, name, file } of given) form.append(kind, file, name);
  return { headers, body: form };
}
