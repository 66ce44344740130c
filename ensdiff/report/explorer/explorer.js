"use strict";
const explorer = (() => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("page-data").textContent);
  const live = {}; // what a server offers: part(name), and removal(layer, sample, units)
  const state = { layer: 0, sample: 0, removed: [], sort: "influence", down: true, all: false, field: null, klass: null };
  const layer = () => page.layers[state.layer];
  const sample = () => layer().samples[state.sample];

  // ---- small helpers
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const show = (x) => (x === null ? "" : Number(x.toPrecision(3)).toString());
  const whole = (n) => n.toLocaleString("en");
  const plural = (n, word) => `${whole(n)} ${word}${n === 1 ? "" : "s"}`;
  const fill = (node, ...children) => node.replaceChildren(...children);
  const picture = (uri, alt) => make("img", { src: uri, alt });

  // ---- data loaded on first use: from the page, or by script tags (fetch does not work with file://)
  const kept = new Map();
  const waiting = new Map();
  const loaded = (name, value) => {
    kept.set(name, value);
    waiting.get(name)?.();
  };
  const parts = new Map();
  function load(name) {
    if (!parts.has(name)) parts.set(name, read(name));
    if (live.part) parts.get(name).catch(() => parts.delete(name)); // a server may answer later
    return parts.get(name);
  }
  function read(name) {
    if (live.part) return live.part(name).then((value) => (loaded(name, value), value));
    const block = $(`data-${name}`);
    if (block) {
      loaded(name, JSON.parse(block.textContent));
      return Promise.resolve(kept.get(name));
    }
    return new Promise((resolve, reject) => {
      waiting.set(name, () => resolve(kept.get(name)));
      const script = make("script", { src: `${page.folder}/${name}.js` });
      script.onerror = () => reject(new Error(`${page.folder}/${name}.js could not be read: keep that folder beside this page`));
      document.head.append(script);
    });
  }
  const units = new Map();
  async function unit(id) {
    const key = `${state.layer}:${id}`;
    if (!units.has(key)) {
      const near = layer().units[id];
      const found = near || (await load(`units-${state.layer}-${Math.floor(id / page.block)}`))[id];
      if (!found) throw new Error(`${layer().name} ${id} is not among those on this page`);
      units.set(key, found);
    }
    const [name, klass, word, count, pictures] = units.get(key);
    return { id, name, klass, word, count, pictures };
  }
  const rowsKept = () => sample().rows.concat(kept.get(`more-${state.layer}-${state.sample}`) || []);
  async function allRows() {
    if (layer().verified > sample().rows.length) await load(`more-${state.layer}-${state.sample}`);
    return rowsKept();
  }
  const pictures = (u, alt) => (u.pictures.length ? u.pictures.map((uri, i) => picture(uri, i ? "" : alt)) : ["deleted"]);
  const thumbnails = (u) => {
    const some = pictures(u, `${u.name}, ${plural(u.count, "training image")}`);
    return make("span", { className: "pictures" }, ...some);
  };
  const failed = (error) => say(error.message, true);
  function say(text, problem = false) {
    $("message").textContent = text;
    $("message").classList.toggle("problem", problem);
  }

  // ---- the gallery
  const described = (b) => `sample ${b}${page.captions ? `, ${page.captions[b]}` : ""}`;
  function drawGallery() {
    page.samples.forEach((uri, b) => {
      const input = make("input", { type: "radio", name: "sample", value: b, checked: b === state.sample });
      input.addEventListener("change", () => choose(b));
      const moved = make("span", { className: "moved" });
      const caption = page.captions ? [make("span", { className: "caption", textContent: page.captions[b] })] : [];
      $("gallery").append(make("label", {}, input, picture(uri, described(b)), ...caption, moved));
    });
  }
  function drawRadii() {
    document.querySelectorAll("#gallery .moved").forEach((node, b) => {
      const { radius, verdict } = layer().samples[b];
      node.textContent = `${show(radius)}${verdict?.length ? " ★" : ""}`;
      node.title = verdict?.length ? "attributable" : "counterfactual radius";
    });
  }

  // ---- a sample
  function choose(b, removed) {
    state.sample = b;
    state.all = false;
    state.sort = "influence";
    state.down = true;
    document.querySelectorAll("#gallery input")[b].checked = true;
    state.removed = removed || [sample().rows[0][0]];
    $("sample-title").textContent = `Sample ${b}`;
    $("caption").hidden = !page.captions;
    $("caption").textContent = page.captions ? `Condition: ${page.captions[b]}` : "";
    $("original").src = $("under").src = page.samples[b];
    $("original").alt = `${described(b)}, as generated`;
    drawVerdict();
    drawRadii();
    $("distribution").innerHTML = sample().figure; // drawn by matplotlib; it contains no names to escape
    drawTable().catch(failed);
    drawScores().catch(failed);
    changed();
    drawLandscape().catch(failed);
  }
  function drawVerdict() {
    const { verdict, radius, scale, rows, null: spread } = sample();
    const kinds = `${layer().name}s`;
    const among = layer().exact ? `all ${whole(layer().candidates)} ${kinds}` : `the ${layer().verified} verified of ${whole(layer().candidates)} ${kinds}`;
    let text = "No null ablations were drawn, so this page cannot tell whether these influences are significant.";
    if (verdict?.length) {
      const named = verdict.filter((id) => layer().units[id]).map((id) => layer().units[id][0]);
      const rest = verdict.length - named.length; // too many to be named here
      const others = rest ? [plural(rest, `${named.length ? "other " : ""}${layer().name}`)] : [];
      text = `Attributable to ${[...named, ...others].join(", ")} at level ${layer().level}.`;
    } else if (verdict) {
      text = `Unattributable at level ${layer().level}: no single ${layer().name} is shown to move it more than switching off other members does.`;
      if (layer().limitation) text += ` But ${layer().limitation}.`;
    }
    $("verdict").textContent = text;
    let where = `Counterfactual radius ${show(radius)}, the largest influence among ${among} (the L2 norm of the sample itself is ${show(scale)}).`;
    if (spread) {
      where += ` Null ablations move it by a median of ${show(spread[1])}, by ${show(spread[2])} at the 95th percentile and by ${show(spread[3])} at most; the radius has p = ${show(rows[0][2])}.`;
    }
    $("radius").textContent = where;
  }

  // ---- what is removed
  function remove(ids) {
    state.removed = [...new Set(ids)].sort((a, b) => a - b);
    changed();
  }
  function toggle(id) {
    remove(state.removed.includes(id) ? state.removed.filter((other) => other !== id) : [...state.removed, id]);
  }
  function changed() {
    const hash = `#layer=${state.layer}&sample=${state.sample}&removed=${state.removed.join(",")}`;
    history.replaceState(null, "", hash);
    markTable();
    drawRemoval().catch(failed);
  }
  let turn = 0;
  async function drawRemoval() {
    const mine = ++turn;
    const chosen = await Promise.all(state.removed.map(unit));
    let found = null;
    if (chosen.length === 1) {
      const id = chosen[0].id;
      let row = rowsKept().find((r) => r[0] === id);
      if (!row) row = (await allRows()).find((r) => r[0] === id);
      if (row) found = [row[1], row[4]];
    } else if (chosen.length) {
      found = sample().sets[state.removed.join(",")] || null;
    }
    if (mine !== turn) return; // another choice was made in the meantime
    const survives = [...Array(page.members).keys()].map((k) => chosen.every((u) => u.word[k] === "0"));
    const left = survives.filter(Boolean).length;
    drawChips(chosen);
    drawWords(chosen, survives);
    const names = chosen.map((u) => u.name).join(", ");
    live.leave?.();
    if (chosen.length && left && !found && live.removal) {
      drawOutcome(null, `sample ${state.sample} without ${names}`, "computing …");
      say(`Computing the sample without ${names} …`);
      await drawDifference(false, mine);
      try {
        found = await live.removal(state.layer, state.sample, state.removed);
      } catch (error) {
        if (mine === turn) {
          drawOutcome(null, "", "not computed");
          failed(error);
        }
        return;
      }
      if (mine !== turn) return;
    }
    $("command").hidden = true;
    if (!chosen.length) {
      say("Nothing is removed. Choose a unit in the table.");
    } else if (!left) {
      say(`No member survives: every member saw ${chosen.length > 1 ? "one of these units" : "this unit"}. Remove fewer units together, or use an ensemble with more members or with code words of smaller weight.`, true);
    } else if (!found && live.removal) {
      say("Not computed.");
    } else if (!found) {
      say(`${plural(left, "member")} of ${page.members} would survive, but this removal was not computed in advance. To compute it:`);
      $("command").textContent = command();
      $("command").hidden = false;
    } else {
      say(`Without ${names} the sample moves by ${show(found[0])}; ${plural(left, "member")} of ${page.members} survive${left === 1 ? "s" : ""}.`);
    }
    const uri = found && left ? found[1] : chosen.length ? null : page.samples[state.sample];
    const said = chosen.length ? `sample ${state.sample} without ${names}` : `sample ${state.sample}, nothing removed`;
    drawOutcome(uri, said, left ? "not computed" : "no survivor");
    await drawDifference(Boolean(uri), mine);
  }
  function drawOutcome(uri, said, instead) {
    const without = $("without");
    $("missing").hidden = Boolean(uri);
    $("missing").textContent = instead;
    without.hidden = !uri;
    without.src = $("over").src = uri || page.samples[state.sample];
    without.alt = said;
    $("divide").disabled = !uri;
  }
  function command() {
    return `${page.command}${layer().groups ? " --groups" : ""} --remove=${state.removed.join(",")}`;
  }
  function drawChips(chosen) {
    const chips = chosen.map((u) => {
      const button = make("button", { type: "button", textContent: `${u.name} ✕` });
      button.setAttribute("aria-label", `Put ${u.name} back`);
      button.addEventListener("click", () => {
        toggle(u.id);
        $("units-title").parentElement.querySelector("tbody input")?.focus({ preventScroll: true });
      });
      return make("li", {}, button);
    });
    fill($("removed"), ...(chips.length ? chips : [make("li", { className: "soft", textContent: "nothing" })]));
  }
  function drawWords(chosen, survives) {
    const word = (label, on, kind, said) => {
      const squares = on.map((bit, k) => make("i", { className: bit ? "on" : "", title: `member ${k}` }));
      const node = make("div", { className: `word ${kind}` }, make("span", { textContent: label }), ...squares);
      node.setAttribute("role", "img");
      node.setAttribute("aria-label", said);
      return node;
    };
    const list = (on) => on.flatMap((bit, k) => (bit ? [k] : [])).join(", ") || "none";
    const rows = chosen.map((u) => {
      const on = [...u.word].map((bit) => bit === "1");
      return word(u.name, on, "", `${u.name} was seen by members ${list(on)}`);
    });
    rows.push(word(`${plural(survives.filter(Boolean).length, "survivor")}`, survives, "left", `surviving members: ${list(survives)}`));
    fill($("words"), ...rows);
  }

  // ---- the difference, and the divider
  async function pixels(image) {
    await image.decode();
    const canvas = make("canvas", { width: page.width, height: page.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, page.width, page.height);
  }
  async function drawDifference(known, mine = turn) {
    const canvas = $("difference");
    canvas.width = page.width;
    canvas.height = page.height;
    if (!known) {
      canvas.setAttribute("aria-label", "no difference to show");
      $("difference-caption").textContent = "no difference to show";
      return;
    }
    const [before, after] = await Promise.all([pixels($("original")), pixels($("over"))]);
    if (mine !== turn) return;
    const gain = Number($("gain").value);
    const signed = $("signed").checked;
    let largest = 0;
    let sum = 0;
    for (let i = 0; i < before.data.length; i++) {
      if (i % 4 === 3) continue;
      const gap = after.data[i] - before.data[i];
      largest = Math.max(largest, Math.abs(gap));
      sum += Math.abs(gap);
      before.data[i] = signed ? 127.5 + (gain * gap) / 2 : gain * Math.abs(gap);
    }
    canvas.getContext("2d").putImageData(before, 0, 0);
    const mean = sum / (0.75 * before.data.length * 255);
    $("difference-caption").textContent = `difference × ${gain}${signed ? ", grey means no difference" : ""}`;
    canvas.setAttribute("aria-label", `difference: ${show(mean)} on average, ${show(largest / 255)} at most, of a range of 1`);
  }
  function divide() {
    const at = $("divide").value;
    $("wipe").style.setProperty("--at", `${at}%`);
    $("divide").setAttribute("aria-valuetext", `${at} % as generated, ${100 - at} % without`);
  }
  function drag(event) {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = $("wipe").getBoundingClientRect();
    $("divide").value = Math.round((100 * (event.clientX - box.left)) / box.width);
    divide();
  }

  // ---- finding a unit by its id, or by a part of its name
  const MOST_FOUND = 8;
  let findTurn = 0;
  const folded = (text) => text.normalize("NFC").trim().toLowerCase();
  async function find() {
    const mine = ++findTurn;
    const wanted = folded($("find").value);
    const listed = wanted ? await load(`names-${state.layer}`) : { units: [], names: [] };
    const ids = listed.units.filter((id, i) => String(id) === wanted || folded(listed.names[i]).includes(wanted));
    const some = await Promise.all(ids.slice(0, MOST_FOUND).map(unit));
    if (mine !== findTurn) return;
    fill($("found"), ...some.map((u) => make("li", {}, picker(u, "found"))));
    $("found").hidden = !some.length;
    $("found-note").hidden = !wanted;
    const more = ids.length > some.length ? `, of which the first ${some.length} are shown` : "";
    $("found-note").textContent = ids.length ? `${plural(ids.length, layer().name)} found${more}.` : `No ${layer().name} on this page is called so.`;
  }

  // ---- the table of units
  const columns = [
    { key: "influence", title: "Influence", value: (r) => r[1] },
    { key: "p", title: "p", value: (r) => r[2] },
    { key: "q", title: "q", value: (r) => r[3] },
  ];
  function header(row, titles, current, down, sort) {
    const cells = titles.map(({ key, title, plain, wide }) => {
      const cell = make("th", { scope: "col", className: wide ? "wide" : "" });
      if (plain) {
        cell.textContent = title;
      } else {
        const button = make("button", { type: "button", textContent: title });
        button.addEventListener("click", () => {
          sort(key);
          [...row.querySelectorAll("button")].find((other) => other.textContent === title)?.focus();
        });
        cell.append(button);
        if (key === current) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      }
      return cell;
    });
    fill(row, ...cells);
  }
  let tableTurn = 0;
  async function drawTable() {
    const mine = ++tableTurn;
    let rows = state.all ? await allRows() : sample().rows;
    const by = columns.find((c) => c.key === state.sort);
    rows = [...rows].sort((x, y) => (state.down ? by.value(y) - by.value(x) : by.value(x) - by.value(y)) || y[1] - x[1]);
    const details = await Promise.all(rows.map((r) => unit(r[0])));
    if (mine !== tableTurn) return;
    const calibrated = rows[0][2] !== null;
    const titles = [{ title: "Remove", plain: true }, { title: "Unit", plain: true }];
    if (layer().classes) titles.push({ title: "Class", plain: true, wide: true });
    titles.push(...columns.filter((c) => c.key === "influence" || calibrated));
    if (calibrated) titles.push({ title: "Verdict", plain: true, wide: true });
    header($("units-head"), titles, state.sort, state.down, (key) => {
      state.down = state.sort === key ? !state.down : key === "influence";
      state.sort = key;
      drawTable().catch(failed);
    });
    const most = Math.max(...rows.map((r) => r[1]), 1e-12);
    fill($("units-body"), ...rows.map((r, i) => tableRow(r, details[i], most, calibrated)));
    markTable();
    $("more").hidden = state.all || layer().verified <= sample().rows.length;
    $("more").textContent = `Show all ${layer().verified} units that were removed exactly`;
  }
  function markTable() {
    for (const row of $("units-body").rows) {
      const chosen = state.removed.includes(Number(row.dataset.unit));
      row.classList.toggle("chosen", chosen);
      row.querySelector("input").checked = chosen;
      row.querySelector(".pick").setAttribute("aria-pressed", chosen && state.removed.length === 1);
    }
  }
  function picker(u, kind) {
    const pick = make("button", { type: "button", className: "pick", id: `${kind}-${u.id}` }, thumbnails(u), u.name);
    pick.addEventListener("click", (event) => {
      remove([u.id]);
      const { bottom } = $("wipe").getBoundingClientRect();
      if (event.detail && bottom < 0) $("removed-title").scrollIntoView(); // on a phone the table is far below
    });
    return pick;
  }
  function tableRow(r, u, most, calibrated) {
    const tick = make("input", { type: "checkbox", id: `tick-${u.id}` });
    tick.setAttribute("aria-label", `Remove ${u.name}`);
    tick.addEventListener("change", () => toggle(u.id));
    const pick = picker(u, "pick");
    const bar = make("span", { className: "bar" });
    bar.style.width = `${(100 * r[1]) / most}%`;
    const row = make("tr", {}, make("td", {}, tick), make("th", { scope: "row" }, pick));
    row.dataset.unit = u.id;
    if (layer().classes) row.append(make("td", { className: "wide", textContent: u.klass }));
    row.append(make("td", {}, show(r[1]), bar));
    if (calibrated) {
      const yes = r[3] <= layer().level;
      row.append(make("td", { textContent: show(r[2]) }), make("td", { textContent: show(r[3]) }));
      row.append(make("td", { className: yes ? "wide yes" : "wide", textContent: yes ? "attributed" : "not attributed" }));
    }
    return row;
  }

  // ---- the same sample by another method
  async function drawScores() {
    const [texts, own] = [layer().scores, sample().scores];
    $("scores").hidden = !texts;
    if (!texts) return;
    const details = await Promise.all(own.rows.map((r) => unit(r[0])));
    if (own !== sample().scores) return;
    for (const name of ["title", "meaning", "judgement"]) $(`scores-${name}`).textContent = texts[name] ?? "";
    $("scores-verdict").textContent = own.verdict ?? "No null was drawn, so this page cannot tell whether these values are significant.";
    $("scores-q").hidden = own.verdict === null;
    fill($("scores-body"), ...own.rows.map(([, value, q], i) => {
      const cells = [value, ...(q === null ? [] : [q])].map((textContent) => make("td", { textContent }));
      return make("tr", {}, make("th", { scope: "row" }, picker(details[i], "score")), ...cells);
    }));
  }

  // ---- the landscape
  async function drawLandscape() {
    const { exact, name, candidates, kept: count, whole: complete } = layer();
    const mine = [state.layer, state.sample];
    $("landscape-note").textContent = "Loading …";
    const field = await load(`landscape-${state.layer}-${state.sample}`);
    const classes = layer().classes ? await load(`classes-${state.layer}`) : null;
    const exactly = new Map((await allRows()).map((r) => [r[0], r]));
    if (mine[0] !== state.layer || mine[1] !== state.sample) return;
    state.field = { ...field, classes, exactly };
    let note = complete ? `All ${whole(candidates)} ${name}s, ` : `The ${whole(count)} of ${whole(candidates)} ${name}s with the largest influence, `;
    note += exact ? "each by exact ablation." : "predicted by differential ablation (the most influential were then removed exactly, see above).";
    $("landscape-note").textContent = note;
    $("landscape").hidden = false;
    document.querySelector(".key.exact").hidden = exact;
    const options = [...$("sort").options].map((o) => o.value);
    if (classes && !options.includes("class")) $("sort").append(make("option", { value: "class", textContent: "class" }));
    if (!classes && options.includes("class")) $("sort").lastElementChild.remove();
    $("classes").hidden = !classes;
    state.klass = null;
    $("cursor").max = field.units.length;
    $("cursor").value = 1;
    orderField();
    if (classes) drawClasses();
  }
  function orderField() {
    const { units: ids, influence, classes } = state.field;
    const order = [...ids.keys()]; // stored with the most influential first
    if ($("sort").value === "number") order.sort((x, y) => ids[x] - ids[y]);
    if ($("sort").value === "class") order.sort((x, y) => classes.of[ids[x]] - classes.of[ids[y]] || influence[y] - influence[x]);
    state.field.order = order;
    drawStrip();
    drawCursor().catch(failed);
  }
  const colour = (name) => getComputedStyle(document.querySelector(name)).color;
  function drawStrip() {
    if (!state.field?.order) return;
    const { units: ids, influence, order, exactly, classes } = state.field;
    const canvas = $("strip");
    const ratio = window.devicePixelRatio || 1;
    const [W, H] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (!W) return;
    canvas.width = W;
    canvas.height = H;
    const context = canvas.getContext("2d");
    const nulls = sample().field_null;
    const top = 1.08 * Math.max(influence[0], nulls ? nulls[2] : 0, 1e-12);
    const [plain, mark, null_] = [".key.unit", ".key.exact", ".key.null"].map(colour);
    const N = order.length;
    for (const pass of [0, 1]) {
      for (let i = 0; i < N; i++) {
        const j = order[i];
        const best = exactly.has(ids[j]) && !layer().exact;
        if (Number(best) !== pass) continue;
        const height = (H * influence[j]) / top;
        context.globalAlpha = state.klass === null || classes.of[ids[j]] === state.klass ? 1 : 0.2;
        context.fillStyle = best ? mark : plain;
        const x = Math.floor((i * W) / N);
        const width = Math.max(1, Math.ceil(((i + 1) * W) / N) - x - (W / N > 6 * ratio ? 2 * ratio : 0));
        context.fillRect(x, H - height, width, height);
      }
    }
    context.globalAlpha = 1;
    context.fillStyle = null_;
    (nulls || []).forEach((value, i) => {
      for (let x = 0; x < W; x += i === 1 ? W : 12 * ratio) {
        context.fillRect(x, H - (H * value) / top, i === 1 ? W : 6 * ratio, Math.max(1, ratio));
      }
    });
    const at = Number($("cursor").value) - 1;
    context.fillStyle = colour("body");
    const x = Math.round(((at + 0.5) * W) / N);
    context.fillRect(x - ratio, 0, 2 * ratio, H);
    canvas.setAttribute("aria-label", `Influences of ${whole(N)} units, ${show(influence[N - 1])} to ${show(influence[0])}; the slider below goes through them one by one`);
  }
  let cursorTurn = 0;
  async function drawCursor() {
    const mine = ++cursorTurn;
    const { units: ids, influence, order, exactly, classes } = state.field;
    const j = order[Number($("cursor").value) - 1];
    const id = ids[j];
    const place = `rank ${whole(j + 1)} of ${whole(ids.length)}`;
    $("cursor").setAttribute("aria-valuetext", `unit ${id}, ${place}, influence ${show(influence[j])}`);
    const u = await unit(id);
    if (mine !== cursorTurn) return;
    let text = `${u.name}${classes ? ` (class ${u.klass})` : ""}: ${place}, `;
    const row = exactly.get(id);
    if (layer().exact) text += `influence ${show(influence[j])}`;
    else text += `predicted influence ${show(influence[j])}` + (row ? `, exact ${show(row[1])}` : ", not removed exactly");
    if (row && row[2] !== null) text += `, p ${show(row[2])}`;
    $("cursor-text").textContent = text;
    fill($("cursor-pictures"), ...pictures(u, u.name));
    for (const [button, what] of [["only", "alone"], ["add", "too"]]) $(button).setAttribute("aria-label", `Remove ${u.name} ${what}`);
    state.field.at = id;
  }
  function moveCursor() {
    drawStrip();
    drawCursor().catch(failed);
  }
  function point(event) {
    const box = $("strip").getBoundingClientRect();
    const N = state.field.order.length;
    $("cursor").value = 1 + Math.min(N - 1, Math.max(0, Math.floor((N * (event.clientX - box.left)) / box.width)));
    moveCursor();
  }

  // ---- the same by class
  const classOrder = { key: "mean", down: true };
  const classColumns = [
    { key: "name", title: "Class" },
    { key: "count", title: "Units" },
    { key: "mean", title: "Mean" },
    { key: "median", title: "Median", wide: true },
    { key: "largest", title: "Largest" },
    { key: "share", title: "In the top 5 %" },
  ];
  function drawClasses() {
    const { units: ids, influence, classes } = state.field;
    const fifth = Math.max(1, Math.round(0.05 * ids.length));
    const groups = classes.names.map((name, number) => ({ name, number, values: [], high: 0 }));
    ids.forEach((id, j) => {
      const group = groups[classes.of[id]];
      group.values.push(influence[j]);
      group.high += j < fifth;
    });
    const rows = groups.filter((g) => g.values.length).map((g) => ({
      ...g,
      count: g.values.length,
      mean: g.values.reduce((a, b) => a + b, 0) / g.values.length,
      median: g.values[Math.floor(g.values.length / 2)],
      largest: g.values[0],
      share: g.high / fifth,
    }));
    const { key, down } = classOrder;
    rows.sort((x, y) => (key === "name" ? x.number - y.number : x[key] - y[key]) * (down ? -1 : 1));
    header($("classes-head"), classColumns, key, down, (other) => {
      classOrder.down = classOrder.key === other ? !classOrder.down : other !== "name";
      classOrder.key = other;
      drawClasses();
    });
    const most = Math.max(...rows.map((g) => g.share), 1e-12);
    fill($("classes-body"), ...rows.map((g) => {
      const pick = make("button", { type: "button", className: "pick", id: `class-${g.number}`, textContent: g.name });
      pick.setAttribute("aria-pressed", state.klass === g.number);
      pick.addEventListener("click", () => {
        state.klass = state.klass === g.number ? null : g.number;
        drawClasses();
        drawStrip();
        $(`class-${g.number}`).focus({ preventScroll: true });
      });
      const bar = make("span", { className: "bar" });
      bar.style.width = `${(100 * g.share) / most}%`;
      const cells = [whole(g.count), show(g.mean), show(g.median), show(g.largest)].map((textContent, i) => make("td", { textContent, className: i === 2 ? "wide" : "" }));
      return make("tr", { className: state.klass === g.number ? "chosen" : "" }, make("th", { scope: "row" }, pick), ...cells, make("td", {}, `${Math.round(100 * g.share)} %`, bar));
    }));
  }

  // ---- layers, training, theme
  function drawLayers() {
    $("layers").hidden = page.layers.length < 2;
    page.layers.forEach(({ name, count }, i) => {
      const input = make("input", { type: "radio", name: "layer", value: i, checked: i === state.layer });
      input.addEventListener("change", () => {
        state.layer = i;
        $("landscape").hidden = true;
        choose(state.sample);
        find().catch(failed);
      });
      $("layers").append(make("label", {}, input, `${name}s (${whole(count)})`));
    });
  }
  function drawTraining() {
    $("training").hidden = !page.training && !page.grids.length;
    if (page.training) {
      $("curves").innerHTML = page.training;
      for (let k = 0; k < page.members; k++) $("member").append(make("option", { value: k, textContent: k }));
      $("member").addEventListener("change", () => {
        for (const curve of document.querySelectorAll(".curve")) curve.classList.toggle("on", curve.dataset.member === $("member").value);
      });
    }
    $("grids").hidden = !page.grids.length;
    if (!page.grids.length) return;
    const step = $("grid-step");
    const draw = () => {
      const [number, uri] = page.grids[step.value];
      $("grid").src = uri;
      $("grid").alt = `grid of samples after ${number} steps`;
      $("grid-caption").textContent = `after ${whole(number)} steps`;
      step.setAttribute("aria-valuetext", `${number} steps`);
    };
    step.max = step.value = page.grids.length - 1;
    step.addEventListener("input", draw);
    draw();
  }
  function startTheme() {
    const prefers = matchMedia("(prefers-color-scheme: dark)");
    let chosen = null;
    try {
      chosen = localStorage.getItem("ensdiff-theme");
    } catch {} // storage may be forbidden
    const set = (dark) => {
      $("theme").setAttribute("aria-pressed", dark);
      drawStrip();
    };
    if (chosen) document.documentElement.dataset.theme = chosen;
    set(chosen ? chosen === "dark" : prefers.matches);
    prefers.addEventListener("change", () => {
      if (!document.documentElement.dataset.theme) set(prefers.matches);
    });
    $("theme").addEventListener("click", () => {
      const dark = $("theme").getAttribute("aria-pressed") !== "true";
      document.documentElement.dataset.theme = dark ? "dark" : "light";
      try {
        localStorage.setItem("ensdiff-theme", dark ? "dark" : "light");
      } catch {}
      set(dark);
    });
  }
  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (name, limit) => {
      const n = Number.parseInt(given.get(name) ?? "", 10);
      return n >= 0 && n < limit ? n : 0;
    };
    state.layer = number("layer", page.layers.length);
    const ids = (given.get("removed") ?? "").split(",").filter((text) => /^\d+$/.test(text)).map(Number);
    const known = [...new Set(ids)].filter((id) => id < layer().count).sort((a, b) => a - b);
    return [number("sample", page.samples.length), known.length ? known : undefined];
  }

  function start(server = {}) {
    Object.assign(live, server);
    document.body.classList.toggle("pixels", Math.max(page.width, page.height) <= 128);
    document.body.style.setProperty("--shape", `${page.width} / ${page.height}`);
    const [first, removed] = fromAddress();
    drawGallery();
    drawLayers();
    drawTraining();
    startTheme();
    $("more").addEventListener("click", () => {
      state.all = true;
      drawTable().then(() => $("units-body").rows[sample().rows.length]?.querySelector("input").focus()).catch(failed);
    });
    $("find").addEventListener("input", () => find().catch(failed));
    $("find-form").addEventListener("submit", (event) => {
      event.preventDefault();
      find().catch(failed);
    });
    $("divide").addEventListener("input", divide);
    for (const kind of ["pointerdown", "pointermove"]) $("wipe").addEventListener(kind, drag);
    for (const id of ["gain", "signed"]) $(id).addEventListener("change", () => drawDifference(!$("without").hidden).catch(failed));
    $("sort").addEventListener("change", () => {
      $("cursor").value = 1;
      orderField();
    });
    $("cursor").addEventListener("input", moveCursor);
    $("strip").addEventListener("click", point);
    $("only").addEventListener("click", () => remove([state.field.at]));
    $("add").addEventListener("click", () => remove([...state.removed, state.field.at]));
    new ResizeObserver(drawStrip).observe($("strip"));
    divide();
    choose(first, removed);
  }
  return { loaded, start, page, state, layer, unit, remove, failed, make, fill, show, plural, picker, thumbnails };
})();
if (!explorer.page.live) explorer.start();
