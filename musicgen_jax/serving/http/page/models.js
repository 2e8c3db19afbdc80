"use strict";
// The choice of a model.

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
  $("model").disabled = true; // a second choice would come too late
  stop();
  player.pause();
  await allRead();
  try {
    await ask("app/model", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name }) });
  } catch (error) {
    $("model").disabled = false;
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
  tabs.postMessage("changed");
}

// Another tab, or whoever started the server again, may have chosen another model.
async function relearn() {
  const told = await fetch("app/about", { cache: "no-store" }).then((answer) => answer.json(), () => null);
  if (!told || !about || told.started === about.started || document.body.dataset.loading) return;
  await allRead(); // a recording ends here, and is kept
  await learn();
}
