"use strict";
// Requests, all relative to the page's address, which holds the token:
//   GET  data/SET/NAME                       a part of the page
//   POST units      {set, layer, units}      the ids of units that a text names
//   POST remove     {set, layer, sample, units}
//   POST draw       {n, seed, cond | prompt, guidance}
//   POST attribute?set=..&layer=..&method=..&cond=..     the body is the file of a picture
// An error is answered by {error}. The last three are answered by server-sent events: {progress}, and in the end {done}
// or {error}. A computation ends when its request is aborted, as the browser does when a tab is closed.
(() => {
  const { page, state, make, fill } = explorer;
  const $ = (id) => document.getElementById(id);
  const number = page.live.set;

  async function checked(answer) {
    if (answer.ok) return answer;
    let text = `The server answered ${answer.status}.`;
    try {
      text = (await answer.json()).error ?? text;
    } catch {} // not from this server
    throw new Error(text);
  }
  async function ask(path, options) {
    try {
      return await checked(await fetch(path, options));
    } catch (error) {
      throw error instanceof TypeError ? new Error("The server does not answer: it was stopped, or refused the connection.") : error;
    }
  }
  const json = (value) => JSON.stringify(value);

  // ---- one computation in each place of the page, with its progress
  const running = new Map();
  function stop(place) {
    running.get(place)?.abort(new Error("Cancelled."));
  }
  async function compute(place, path, body) {
    stop(place);
    const control = new AbortController();
    running.set(place, control);
    const box = $(place);
    const [bar, text, cancel] = box.children;
    cancel.onclick = () => stop(place);
    bar.removeAttribute("value");
    text.textContent = "sent";
    box.hidden = false;
    try {
      const answer = await ask(path, { method: "POST", body, signal: control.signal });
      return await follow(answer.body, bar, text);
    } catch (error) {
      throw control.signal.aborted ? control.signal.reason : error;
    } finally {
      if (running.get(place) === control) {
        running.delete(place);
        box.hidden = true;
      }
    }
  }
  async function follow(stream, bar, text) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch {
        part = { done: true };
      }
      if (part.done) throw new Error("The server stopped before this was computed.");
      buffer += part.value;
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        const { progress, done, error } = JSON.parse(event.slice("data: ".length));
        if (error) throw new Error(error);
        if (done) return done;
        text.textContent = progress.text;
        if (progress.share === null) bar.removeAttribute("value");
        else bar.value = progress.share;
      }
    }
  }

  // ---- removals
  const removals = new Map();
  async function removal(layer, sample, units) {
    const key = `${layer}:${sample}:${units}`;
    if (!removals.has(key)) removals.set(key, await compute("live-removal", "remove", json({ set: number, layer, sample, units })));
    return removals.get(key).removal;
  }
  $("live-remove").addEventListener("submit", async (event) => {
    event.preventDefault();
    const layer = state.layer;
    try {
      const answer = await ask("units", { method: "POST", body: json({ set: number, layer, units: $("live-units").value }) });
      const { ids } = await answer.json();
      if (layer !== state.layer) return;
      $("live-units").value = "";
      explorer.remove([...state.removed, ...ids]);
    } catch (error) {
      explorer.failed(error);
    }
  });

  // ---- other samples
  function told(place, error) {
    $(place).hidden = !error;
    $(place).textContent = error?.message ?? "";
  }
  const filled = (form) => Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== ""));
  $("draw-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { n, seed, guidance, ...rest } = filled(event.target);
    const asked = { n: Number(n), seed: Number(seed), ...(guidance ? { guidance: Number(guidance) } : {}), ...rest };
    told("draw-message");
    try {
      const { set } = await compute("draw-working", "draw", json(asked));
      location.assign(`?set=${set}`);
    } catch (error) {
      told("draw-message", error);
    }
  });

  // ---- a picture of the reader's own
  let shown = null;
  async function attribute(file) {
    told("own-message");
    $("own-result").hidden = true;
    if (!file) {
      told("own-message", new Error("Choose a picture first, or drop one on this page."));
      return;
    }
    const layer = state.layer;
    const query = new URLSearchParams({ set: number, layer, ...filled($("own-form")) });
    try {
      const found = await compute("own-working", `attribute?${query}`, file);
      if (layer === state.layer) await draw(found);
    } catch (error) {
      told("own-message", error);
    }
  }
  async function draw(found) {
    shown = state.layer;
    $("own-picture").src = found.picture;
    $("own-method").textContent = found.title;
    $("own-meaning").textContent = found.meaning;
    $("own-judgement").textContent = found.judgement ?? "";
    $("own-verdict").textContent = found.verdict ?? "No null was drawn, so this page cannot tell whether these values are significant.";
    $("own-q").hidden = found.verdict === null;
    const units = await Promise.all(found.rows.map(([id]) => explorer.unit(id)));
    fill($("own-body"), ...found.rows.map(([, value, q], i) => {
      const cells = [value, ...(q === null ? [] : [q])].map((textContent) => make("td", { textContent }));
      return make("tr", {}, make("th", { scope: "row" }, explorer.picker(units[i], "own")), ...cells);
    }));
    $("own-result").hidden = false;
  }
  function acceptPictures() {
    $("own-form").addEventListener("submit", (event) => {
      event.preventDefault();
      attribute(event.target.elements.picture.files[0]);
    });
    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      document.body.classList.remove("dropping");
      $("own").scrollIntoView();
      $("own-form").elements.picture.files = event.dataTransfer.files;
      attribute(event.dataTransfer.files[0]);
    });
  }
  if ($("own")) acceptPictures();

  explorer.start({
    part: async (name) => (await ask(`data/${number}/${name}`)).json(),
    removal,
    leave: () => {
      stop("live-removal");
      if ($("own") && shown !== state.layer) $("own-result").hidden = true;
    },
  });
})();
