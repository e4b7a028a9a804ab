"use strict";
// A layered graph on a canvas. Places come with the data; only what is in view is drawn.
(() => {
  const root = document.getElementById("graph");
  if (!root) return;
  const graphs = JSON.parse(document.getElementById("graph-data").textContent);
  const canvas = root.querySelector("canvas.main"), strip = root.querySelector("canvas.strip");
  const detail = root.querySelector(".detail"), find = document.getElementById("find");
  const found = document.getElementById("found");
  const buttons = [...document.querySelectorAll("button[data-graph]")];
  const WIDTH = 148, HEIGHT = 34, STEP_X = 172, STEP_Y = 66, BUCKET = 32;
  let colors = {}, view = null, scale = 1, left = 0, top = 0, hits = [], hit = -1;
  let selected = -1, queued = false;

  function prepare(data) {
    if (data.rows) return;
    const count = data.op.length;
    data.rows = []; data.into = new Map(); data.from = new Map(); data.buckets = new Map();
    data.minPlace = Infinity; data.maxPlace = -Infinity;
    for (let i = 0; i < count; i++) {
      (data.rows[data.layer[i]] ||= []).push(i);
      data.minPlace = Math.min(data.minPlace, data.place[i]);
      data.maxPlace = Math.max(data.maxPlace, data.place[i]);
    }
    for (let e = 0; e < data.edges.length; e += 2) {
      const a = data.edges[e], b = data.edges[e + 1];
      if (!data.from.has(a)) data.from.set(a, []);
      if (!data.into.has(b)) data.into.set(b, []);
      data.from.get(a).push(b); data.into.get(b).push(a);
      const low = Math.floor(data.layer[a] / BUCKET), high = Math.floor(data.layer[b] / BUCKET);
      for (let bucket = low; bucket <= high; bucket++) {
        if (!data.buckets.has(bucket)) data.buckets.set(bucket, []);
        data.buckets.get(bucket).push(e);
      }
    }
  }

  const x = (i) => view.place[i] * STEP_X, y = (i) => view.layer[i] * STEP_Y;

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["card", "ink", "soft", "line", "accent", "good", "warn", "bad", "edge",
      "hit", "good-fill", "warn-fill", "bad-fill", "same-fill"])
      colors[name] = style.getPropertyValue("--" + name).trim();
    colors.fill = { same: colors["same-fill"], changed: colors["warn-fill"],
      gone: colors["bad-fill"], new: colors["good-fill"] };
    colors.stroke = { same: colors.edge, changed: colors.warn, gone: colors.bad, new: colors.good };
  }

  function fit(element) {
    const ratio = window.devicePixelRatio || 1, box = element.getBoundingClientRect();
    if (element.width !== Math.round(box.width * ratio)) element.width = Math.round(box.width * ratio);
    if (element.height !== Math.round(box.height * ratio))
      element.height = Math.round(box.height * ratio);
    const context = element.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return [context, box.width, box.height];
  }

  function draw() {
    queued = false;
    const [c, width, height] = fit(canvas);
    c.clearRect(0, 0, width, height);
    c.save();
    c.translate(-left * scale, -top * scale); c.scale(scale, scale);
    const first = Math.max(0, Math.floor(top / STEP_Y) - 1);
    const last = Math.min(view.rows.length - 1, Math.ceil((top + height / scale) / STEP_Y) + 1);
    drawEdges(c, first, last);
    const right = left + width / scale, hitSet = new Set(hits);
    c.font = "600 13px system-ui, sans-serif"; c.textBaseline = "middle"; c.textAlign = "center";
    for (let layer = first; layer <= last; layer++)
      for (const i of view.rows[layer] || []) {
        if (x(i) + WIDTH / 2 < left || x(i) - WIDTH / 2 > right) continue;
        drawBox(c, i, hitSet.has(i));
      }
    c.restore();
    drawStrip(height);
  }

  function drawEdges(c, first, last) {
    const near = selected < 0 ? null : selected;
    c.lineWidth = Math.max(1, 0.8 / scale); c.strokeStyle = colors.edge; c.globalAlpha = 0.8;
    const seen = new Set(), strong = [];
    c.beginPath();
    for (let bucket = Math.floor(first / BUCKET); bucket <= Math.floor(last / BUCKET); bucket++)
      for (const e of view.buckets.get(bucket) || []) {
        const a = view.edges[e], b = view.edges[e + 1];
        if (view.layer[a] > last || view.layer[b] < first || seen.has(e)) continue;
        seen.add(e);
        if (a === near || b === near) strong.push(e); else edge(c, a, b);
      }
    c.stroke();
    c.globalAlpha = 1; c.strokeStyle = colors.accent; c.lineWidth = Math.max(2, 1.5 / scale);
    c.beginPath();
    for (const e of strong) edge(c, view.edges[e], view.edges[e + 1]);
    c.stroke();
  }

  function edge(c, a, b) {
    const ay = y(a) + HEIGHT, by = y(b);
    c.moveTo(x(a), ay);
    if (by - ay <= STEP_Y) {
      const middle = (ay + by) / 2;
      c.bezierCurveTo(x(a), middle, x(b), middle, x(b), by);
      return;
    }
    // a long edge leaves its column only near its ends
    const side = x(a) + (x(b) >= x(a) ? 1 : -1) * (WIDTH / 2 + 12 + (view.layer[b] % 5) * 3);
    c.bezierCurveTo(x(a), ay + 24, side, ay + 8, side, ay + 36);
    c.lineTo(side, by - 36);
    c.bezierCurveTo(side, by - 8, x(b), by - 24, x(b), by);
  }

  function drawBox(c, i, isHit) {
    const status = view.status[i], op = view.ops[view.op[i]];
    const isEnd = op === "input" || op === "output";
    c.beginPath();
    c.roundRect(x(i) - WIDTH / 2, y(i), WIDTH, HEIGHT, isEnd ? HEIGHT / 2 : 6);
    // from afar a pale fill cannot be told from the page
    c.fillStyle = scale < 0.32 ? colors.stroke[status] : colors.fill[status];
    c.fill();
    c.lineWidth = i === selected ? 3 : isHit ? 2.5 : 1;
    c.strokeStyle = i === selected ? colors.accent : isHit ? colors.hit : colors.stroke[status];
    c.stroke();
    if (scale < 0.32) return;
    c.fillStyle = colors.ink;
    c.fillText(cut(c, isEnd ? view.name[i] : op, WIDTH - 14), x(i), y(i) + HEIGHT / 2 + 0.5);
  }

  function cut(c, text, room) {
    if (c.measureText(text).width <= room) return text;
    let low = 1, high = text.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (c.measureText(text.slice(0, middle) + "…").width <= room) low = middle; else high = middle;
    }
    return text.slice(0, low) + "…";
  }

  function drawStrip(mainHeight) {
    const [c, width, height] = fit(strip);
    c.clearRect(0, 0, width, height);
    const total = Math.max(1, view.rows.length);
    for (let i = 0; i < view.op.length; i++) {
      if (view.status[i] === "same") continue;
      c.fillStyle = colors.stroke[view.status[i]];
      c.fillRect(3, (view.layer[i] / total) * height, width - 6, Math.max(1.5, height / total));
    }
    c.fillStyle = colors.hit;
    for (const i of hits) c.fillRect(0, (view.layer[i] / total) * height, width, 2);
    c.strokeStyle = colors.accent; c.lineWidth = 1.5;
    const from = (top / STEP_Y / total) * height, span = mainHeight / scale / STEP_Y / total * height;
    c.strokeRect(1, Math.max(1, from), width - 2, Math.min(height - 2, Math.max(6, span)));
  }

  const redraw = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };

  function center(i, zoom) {
    const box = canvas.getBoundingClientRect();
    if (zoom) scale = Math.max(scale, 0.7);
    left = x(i) - box.width / scale / 2; top = y(i) - box.height / scale / 2;
    redraw();
  }

  function home() {
    const box = canvas.getBoundingClientRect();
    const wide = (view.maxPlace - view.minPlace) * STEP_X + WIDTH + 40;
    scale = Math.min(1, Math.max(0.35, box.width / wide));
    const start = view.rows[0] ? view.rows[0][Math.floor(view.rows[0].length / 2)] : 0;
    const middle = wide * scale <= box.width
      ? ((view.minPlace + view.maxPlace) / 2) * STEP_X : view.place[start] * STEP_X;
    left = middle - box.width / scale / 2; top = -24;
    redraw();
  }

  function line(tag, text) {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
  }

  function select(i) {
    selected = i;
    detail.replaceChildren();
    if (i < 0) {
      detail.append(line("p", "Select a node. Drag to move, scroll to zoom."));
      redraw();
      return;
    }
    detail.append(line("h3", view.ops[view.op[i]]));
    const name = line("div", view.name[i]);
    name.className = "mono";
    const list = document.createElement("dl");
    const entry = (title, values) => {
      if (!values.length) return;
      list.append(line("dt", title));
      for (const value of values) {
        const item = line("dd", value);
        item.className = "mono";
        list.append(item);
      }
    };
    const links = (title, others) => {
      if (!others.length) return;
      list.append(line("dt", title));
      for (const other of others) {
        const item = document.createElement("dd"), link = line("a", "");
        link.textContent = view.ops[view.op[other]] + " " + view.name[other];
        link.onclick = () => { select(other); center(other, false); };
        item.append(link);
        list.append(item);
      }
    };
    const words = { same: "unchanged", changed: "changed", gone: "no longer there", new: "new" };
    if (graphs.before) entry("compared", [words[view.status[i]]]);
    entry("type", [view.types[i]]);
    entry("attributes", view.detail[i]);
    links("from", view.into.get(i) || []);
    links("to", view.from.get(i) || []);
    entry("origin", view.origin[i] ? [view.origin[i]] : []);
    detail.append(name, list);
    redraw();
  }

  function search(next) {
    const text = find.value.trim().toLowerCase();
    const before = hits.length ? hits[hit] : -1;
    hits = [];
    if (text)
      for (let i = 0; i < view.op.length; i++)
        if (view.ops[view.op[i]].toLowerCase().includes(text)
          || view.name[i].toLowerCase().includes(text)) hits.push(i);
    hit = hits.length ? 0 : -1;
    if (next && hits.length) {
      const at = hits.findIndex((i) => i > before);
      hit = at < 0 ? 0 : at;
    }
    found.textContent = text ? (hits.length ? `${hit + 1} of ${hits.length}` : "none") : "";
    if (hit >= 0) { select(hits[hit]); center(hits[hit], true); } else redraw();
  }

  function show(name) {
    const keep = view && selected >= 0 ? view.name[selected] : null;
    view = graphs[name];
    prepare(view);
    for (const button of buttons)
      button.setAttribute("aria-pressed", String(button.dataset.graph === name));
    if (!view.op.length) {
      root.replaceChildren(line("p", `The graph has ${view.nodes} nodes and is not drawn.`));
      return;
    }
    hits = []; hit = -1; selected = -1;
    const again = keep === null ? -1 : view.name.indexOf(keep);
    home();
    if (find.value) search(false);
    if (again >= 0) { select(again); center(again, false); } else if (selected < 0) select(-1);
  }

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, left, top, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (Math.abs(dx) + Math.abs(dy) > 4) drag.moved = true;
    left = drag.left - dx / scale; top = drag.top - dy / scale;
    redraw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) select(at(event));
    drag = null;
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 80 / scale, box = canvas.getBoundingClientRect();
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step],
      ArrowDown: [0, step] };
    if (moves[event.key]) { left += moves[event.key][0]; top += moves[event.key][1]; }
    else if (event.key === "+" || event.key === "=") zoom(1.25, box.width / 2, box.height / 2);
    else if (event.key === "-") zoom(0.8, box.width / 2, box.height / 2);
    else return;
    event.preventDefault();
    redraw();
  });

  function zoom(factor, atX, atY) {
    const to = Math.min(2.5, Math.max(0.04, scale * factor));
    left += atX / scale - atX / to; top += atY / scale - atY / to;
    scale = to;
    redraw();
  }

  function at(event) {
    const px = left + event.offsetX / scale, py = top + event.offsetY / scale;
    const row = view.rows[Math.floor(py / STEP_Y)] || [];
    if (py - Math.floor(py / STEP_Y) * STEP_Y > HEIGHT) return -1;
    return row.find((i) => Math.abs(x(i) - px) <= WIDTH / 2) ?? -1;
  }

  strip.addEventListener("pointerdown", (event) => {
    const box = strip.getBoundingClientRect();
    const layer = Math.floor((event.offsetY / box.height) * view.rows.length);
    const row = view.rows[layer] || [];
    if (row.length) center(row[Math.floor(row.length / 2)], false);
  });
  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.graph));
  document.getElementById("home").addEventListener("click", home);
  find.addEventListener("input", () => search(false));
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") search(true); });
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColors();
    redraw();
  });
  readColors();
  show(graphs.after ? "after" : "before");
})();
