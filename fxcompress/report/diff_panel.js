// Draws both graphs of a difference under common rows. Everything else of the page is complete without this script.
const data = JSON.parse(document.getElementById("data").textContent);
const text = (at) => data.texts[at];
const PITCH = 64, WIDTH = 192, HEIGHT = 40, HALF = HEIGHT / 2, MARGIN = 34;
const SIDES = ["base", "head"];
const WORDS = { "-": "removed", "+": "added", "~": "rewired", ">": "moved", "=": "merged", "*": "changed" };
const SHOWN = { "-": "\u2212", "*": "\u2217" };  // signs that are too small as they are

function shape(tag, attributes, words) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (words !== undefined) made.textContent = words;
  return made;
}

const clip = (words, width) => (words.length <= width ? words : words.slice(0, Math.max(0, width - 3)) + "...");
const shorten = (words, width) => (words.length <= width ? words : "..." + words.slice(words.length - width + 3));
const scaled = (value, base, names) => {
  let place = 0;
  while (Math.abs(value) >= 999.5 && place < names.length - 1) { value /= base; place += 1; }
  return `${place ? Number(value.toPrecision(3)) : Math.round(value)} ${names[place]}`.trim();
};
const count = (value) => scaled(value, 1000, ["", "k", "M", "G", "T", "P"]);
const size = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const decibel = (value) => `${value.toFixed(1)} dB`;

// One graph in its panel. Boxes are made when their row is first seen.
class Panel {
  constructor(view, side) {
    this.view = view;
    this.side = side;
    this.root = document.querySelector(`[data-side="${SIDES[side]}"]`);
    this.canvas = this.root.querySelector(".canvas");
    this.svg = shape("svg", { role: "group", "aria-label": `graph of ${SIDES[side]}` });
    this.led = 0;
    this.layers = {};
    for (const name of ["backs", "wires", "path", "boxes", "bars"]) this.svg.append(this.layers[name] = shape("g", { class: name }));
    this.canvas.replaceChildren(this.svg);
    this.listen();
  }

  get other() { return this.view.panels[1 - this.side]; }

  load(step) {
    this.graph = data.graphs[step.graphs[this.side]];
    const { row, x, via } = step.places[this.side];
    this.row = row;
    this.x = x;
    this.via = via.map((runs) => {
      const list = [];
      for (let k = 0; k < runs.length; k += 2) for (let n = 0; n < runs[k + 1]; n++) list.push(runs[k]);
      return list;
    });
    this.count = row.length;
    this.readers = row.map(() => []);
    this.graph.in.forEach((list, i) => list.forEach((s) => this.readers[s].push(i)));
    this.marks = new Map(step.marks[this.side]);
    this.inRow = Array.from({ length: step.rows }, () => []);
    this.reach = Array.from({ length: step.rows }, () => [Infinity, -Infinity]);
    for (let i = 0; i < this.count; i++) {
      this.inRow[row[i]].push(i);
      [x[i], ...this.via[i]].forEach((at, k) => {
        const reach = this.reach[row[i] + k];
        reach[0] = Math.min(reach[0], at);
        reach[1] = Math.max(reach[1], at);
      });
    }
    this.inRow.forEach((list) => list.sort((a, b) => x[a] - x[b]));
    this.boxes = new Map();
    this.root.querySelector(".bar span").textContent = `${this.count} node${this.count === 1 ? "" : "s"}`;
    for (const layer of Object.values(this.layers)) layer.replaceChildren();
  }

  title(i) { return `${text(this.graph.kind[i])} ${text(this.graph.path[i]) || text(this.graph.name[i])}`; }

  // -- drawing
  draw() {
    const { y, bar, folds } = this.view;
    const shown = [];
    let left = Infinity, right = -Infinity;
    this.shift = this.shifts();
    for (let i = 0; i < this.count; i++) {
      const hidden = bar[this.row[i]] !== null;
      if (!hidden) {
        shown.push(i);
        left = Math.min(left, this.at(i) - WIDTH / 2);
        right = Math.max(right, this.at(i) + WIDTH / 2);
      }
      const box = this.boxes.get(i);
      if (hidden && box) { box.remove(); this.boxes.delete(i); }
    }
    this.spans = new Map(folds.closed.map((fold) => [fold, this.span(fold)]));
    for (const [low, high] of this.spans.values()) { left = Math.min(left, low); right = Math.max(right, high); }
    for (let r = 0; r < y.length; r++) {
      if (bar[r] !== null) continue;
      left = Math.min(left, this.reach[r][0] + this.shift[r] - 8);
      right = Math.max(right, this.reach[r][1] + this.shift[r] + 8);
    }
    if (left > right) [left, right] = [0, WIDTH];
    const spare = Math.max(0, this.canvas.clientWidth - 4 - 2 * MARGIN - (right - left)), lean = right + left;
    if (lean > 0) left -= Math.min(spare, lean);
    else right += Math.min(spare, -lean);
    this.frame = { left: left - MARGIN, width: right - left + 2 * MARGIN };
    this.layers.backs.replaceChildren(...this.backs());
    this.layers.wires.replaceChildren(shape("path", { d: this.wires(this.everyWire()) }));
    for (const i of shown) {
      if (!this.boxes.has(i)) { this.boxes.set(i, this.box(i)); this.layers.boxes.append(this.boxes.get(i)); }
      this.boxes.get(i).setAttribute("transform", `translate(${this.at(i) - WIDTH / 2} ${y[this.row[i]] - HALF})`);
    }
    this.layers.bars.replaceChildren(...folds.closed.map((fold) => this.bar(fold)), ...folds.open.map((fold) => this.handle(fold)));
    this.mark();
  }

  // The rows between two folded bars move as one, so that their middles stand below each other wherever the whole graph has them.
  shifts() {
    const { bar } = this.view, shift = new Array(bar.length);
    let last = 0;
    for (let r = 0; r < bar.length; r++) {
      if (bar[r] === null && (r === 0 || bar[r - 1] !== null)) {
        const across = [];
        for (let k = r; k < bar.length && bar[k] === null; k++) for (const i of this.inRow[k]) across.push(this.x[i]);
        if (across.length) last = -across.sort((a, b) => a - b)[across.length >> 1];
      }
      shift[r] = last;
    }
    return shift;
  }

  at(i) { return this.x[i] + this.shift[this.row[i]]; }

  // How far a folded bar reaches: over all lines that go into it and come out of it.
  span(fold) {
    const reach = [[fold.first, fold.first], [fold.last, Math.min(fold.last + 1, this.shift.length - 1)]]
      .map(([r, beside]) => this.reach[r].map((x) => x + this.shift[beside]));
    let low = Math.min(...reach.map((r) => r[0])), high = Math.max(...reach.map((r) => r[1]));
    if (low > high) low = high = 0;
    const words = 7 * Math.max(fold.title.length + 2, Math.min(34, fold.where.length));
    const spare = Math.max(12, (Math.max(WIDTH, words) + 24 - (high - low)) / 2);
    return [low - spare, high + spare];
  }

  // Which pieces of lines there are: [row, x above, whether a box stands there, x below, whether a box stands there].
  *piecesOf(s, targets = this.readers[s], until = Infinity) {
    const line = [this.x[s], ...this.via[s]], top = this.row[s];
    for (let k = 0; k + 1 < line.length && top + k + 1 < until; k++) yield [top + k, line[k], k === 0, line[k + 1], false];
    for (const t of targets) {
      const k = this.row[t] - 1 - top;
      yield [top + k, line[k], k === 0, this.x[t], true];
    }
  }

  *everyWire() { for (let s = 0; s < this.count; s++) yield* this.piecesOf(s); }

  wires(pieces) {
    const { y, bar } = this.view;
    let path = "";
    for (const [r, from, boxAbove, to, boxBelow] of pieces) {
      if (bar[r] !== null && bar[r] === bar[r + 1]) continue;
      const shift = this.shift[bar[r] === null ? r : r + 1], above = from + shift, below = to + shift;
      const start = y[r] + (boxAbove || bar[r] ? HALF : 0), end = y[r + 1] - (boxBelow || bar[r + 1] ? HALF : 0);
      path += `M${above} ${start}`;
      if (Math.abs(above - below) >= 1) {
        const top = y[r] + HALF, bottom = y[r + 1] - HALF, middle = (top + bottom) / 2;
        path += `V${top}C${above} ${middle} ${below} ${middle} ${below} ${bottom}`;
      }
      path += `V${end}`;
    }
    return path;
  }

  box(i) {
    const g = this.graph, signs = this.marks.get(i) || "", room = 26 - 3 * signs.length;
    const kind = clip(text(g.kind[i]).replaceAll("_", " "), Math.min(21, room));
    const words = [...signs].map((sign) => WORDS[sign]);
    const made = shape("g", {
      class: `box ${data.families[g.family[i]]} ${words.join(" ")}`, id: `${SIDES[this.side]}-${i}`, tabindex: "-1", role: "button",
      "aria-label": [text(g.kind[i]), text(g.name[i]), text(g.shape[i]), ...words].filter(Boolean).join(" "),
    });
    const line = shape("text", { x: 13, y: 17 });
    const name = room - kind.length > 7 ? shorten(text(g.name[i]), room - 1 - kind.length) : "";
    line.append(shape("tspan", { class: "kind" }, kind), ` ${name}`);
    const second = shape("text", { class: "shape", x: 13, y: 32 }, clip(text(g.shape[i]), 30));
    made.append(shape("rect", { width: WIDTH, height: HEIGHT, rx: 6 }), shape("rect", { class: "stripe", width: 5, height: HEIGHT, rx: 2.5 }), line, second);
    [...signs].forEach((sign, k) => made.append(badge(sign, WIDTH - 13 - 19 * k)));
    return made;
  }

  // Behind the nodes that became others together: over the rows of both sides where no other box stands in the way.
  backs() {
    const { y, step, bar } = this.view, made = [];
    for (const group of step.groups) {
      const mine = group[this.side].filter((i) => bar[this.row[i]] === null);
      if (!mine.length) continue;
      const rows = mine.map((i) => this.row[i]), across = mine.map((i) => this.x[i]), shift = this.shift[rows[0]];
      const left = Math.min(...across), right = Math.max(...across), first = Math.min(...rows);
      let last = Math.max(...rows);
      const free = (r) => bar[r] === null && this.inRow[r].every((i) => mine.includes(i) || this.x[i] + WIDTH < left || this.x[i] - WIDTH > right);
      let whole = right - left <= WIDTH;
      for (let r = first; r <= last; r++) whole = whole && free(r);
      if (!whole) {
        made.push(...mine.map((i) => back(this.at(i), this.at(i), y[this.row[i]], y[this.row[i]])));
        continue;
      }
      const reach = Math.max(...group[1 - this.side].map((i) => this.other.row[i]));
      while (mine.length === 1 && last < reach && free(last + 1) && this.via[mine[0]][last - first] === left) last += 1;
      made.push(back(left + shift, right + shift, y[first], y[last]));
    }
    return made;
  }

  bar(fold) {
    const [low, high] = this.spans.get(fold), middle = (low + high) / 2, top = this.view.y[fold.first] - HALF;
    const filled = this.inRow.slice(fold.first, fold.last + 1).some((list) => list.length), two = filled && fold.where;
    const made = shape("g", {
      class: "fold", "data-fold": fold.number, tabindex: "-1", role: "button", "aria-expanded": "false",
      "aria-label": `folded: ${fold.title} ${fold.where}`, transform: `translate(${low} ${top})`,
    });
    made.append(
      shape("rect", { class: "under", x: 4, y: 4, width: high - low - 8, height: HEIGHT, rx: 6 }),
      shape("rect", { width: high - low, height: HEIGHT, rx: 6 }),
      shape("text", { class: "kind", x: middle - low, y: two ? 17 : 24 }, filled ? `\u2026 ${fold.title}` : "\u2026 nothing here"),
    );
    if (two) made.append(shape("text", { class: "shape", x: middle - low, y: 32 }, shorten(fold.where, 34)));
    return made;
  }

  // What folds an open stretch again: a bracket at the left margin.
  handle(fold) {
    const { y } = this.view, x = this.frame.left + 9 + 7 * fold.depth;
    const made = shape("g", { class: "handle", "data-fold": fold.number, tabindex: "-1", role: "button", "aria-expanded": "true", "aria-label": `fold again: ${fold.title} ${fold.where}` });
    const top = y[fold.first] - HALF, bottom = y[fold.last] + HALF;
    made.append(shape("title", {}, "fold again"), shape("rect", { class: "reach", x: x - 7, y: top, width: 14, height: bottom - top }),
      shape("path", { d: `M${x + 4} ${top}H${x}V${bottom}H${x + 4}` }));
    return made;
  }

  resize() {
    const { scale, height } = this.view;
    this.svg.setAttribute("viewBox", `${this.frame.left} 0 ${this.frame.width} ${height}`);
    this.svg.setAttribute("width", this.frame.width * scale);
    this.svg.setAttribute("height", height * scale);
  }

  // -- highlights
  mark() {
    const { chosen, twins, mates, hits } = this.view;
    const mine = chosen && chosen.side === this.side ? chosen.i : -1;
    for (const old of this.svg.querySelectorAll(".chosen, .twin, .near, .hit")) old.classList.remove("chosen", "twin", "near", "hit");
    const add = (i, name) => this.boxes.get(i)?.classList.add(name);
    for (const i of hits[this.side]) add(i, "hit");
    for (const i of [...twins[this.side], ...mates[this.side]]) add(i, "twin");
    const near = [];
    for (const i of [mine, ...twins[this.side]]) {
      if (i < 0) continue;
      for (const piece of this.piecesOf(i)) near.push(piece);
      for (const s of this.graph.in[i]) for (const piece of this.piecesOf(s, [i], this.row[i])) near.push(piece);
      if (i === mine) for (const o of [...this.graph.in[i], ...this.readers[i]]) add(o, "near");
    }
    add(mine, "chosen");
    this.layers.path.replaceChildren(shape("path", { d: this.wires(near) }));
    const first = mine >= 0 ? mine : twins[this.side][0] ?? this.boxes.keys().next().value;
    for (const old of this.svg.querySelectorAll('[tabindex="0"]')) old.setAttribute("tabindex", "-1");
    this.boxes.get(first)?.setAttribute("tabindex", "0");
  }

  // -- scrolling
  show(i) {
    const box = this.boxes.get(i);
    if (box) this.showElement(box);
  }

  showElement(element_) {
    const box = element_.getBoundingClientRect(), view = this.canvas.getBoundingClientRect();
    if (box.top < view.top + 10 || box.bottom > view.bottom - 10) this.canvas.scrollTop += box.top - view.top - view.height / 2;
    if (box.left < view.left + 5 || box.right > view.right - 5) this.canvas.scrollLeft += box.left - view.left - view.width / 2 + box.width / 2;
  }

  // The middle box of those that are seen comes to the middle of the panel.
  centre() {
    const across = [...this.boxes.keys()].map((i) => this.at(i)).sort((a, b) => a - b), middle = across[across.length >> 1];
    if (middle !== undefined) this.canvas.scrollLeft = (middle - this.frame.left) * this.view.scale - this.canvas.clientWidth / 2;
  }

  // -- events
  listen() {
    const dragged = grabbable(this.canvas);
    wheelZooms(this.canvas, (factor, x, y) => this.view.zoom(this.view.scale * factor, x, y, this));
    this.svg.addEventListener("click", (event) => { if (!dragged()) this.act(event.target, false); });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("scroll", () => {
      const top = this.canvas.scrollTop;
      if (Math.abs(top - this.led) > 1.5) this.other.follow(top);  // else it only follows the other graph
    });
  }

  follow(top) {
    this.led = top;
    this.canvas.scrollTop = top;
  }

  act(target, keyboard) {
    const box = target.closest(".box"), fold = target.closest("[data-fold]");
    if (box) this.view.choose(this.side, Number(box.id.slice(5)));
    else if (fold) this.view.turn(Number(fold.dataset.fold), keyboard ? this : null);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const box = event.target.closest(".box"), fold = event.target.closest("[data-fold]");
    if (event.key === "Enter" || event.key === " ") this.act(event.target, true);
    else if (event.key.startsWith("Arrow") && box) this.walk(Number(box.id.slice(5)), event.key);
    else if (event.key.startsWith("Arrow") && fold) this.leave(this.view.every[fold.dataset.fold], event.key);
    else if (event.key.startsWith("Arrow") && event.target === this.canvas && event.key === "ArrowDown" && !this.canvas.scrollTop) this.enter();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  enter() { this.svg.querySelector('.box[tabindex="0"]')?.focus(); }

  // Up and down follow the edges; left and right go along the row, and over to the other graph at its end.
  walk(i, key) {
    if (key === "ArrowUp" || key === "ArrowDown") {
      const next = (key === "ArrowUp" ? this.graph.in : this.readers)[i][0];
      if (next !== undefined) this.go(next);
      return;
    }
    const row = this.inRow[this.row[i]], at = row.indexOf(i) + (key === "ArrowRight" ? 1 : -1);
    if (row[at] !== undefined) { this.view.choose(this.side, row[at]); return; }
    if ((key === "ArrowRight") !== (this.side === 0)) return;
    const beside = this.view.relatives(this.side, i)[0] ?? this.other.inRow[this.row[i]][0];
    if (beside !== undefined) this.view.choose(1 - this.side, beside);
  }

  go(i) {
    const fold = this.view.bar[this.row[i]];
    if (fold) this.focusFold(fold);
    else this.view.choose(this.side, i);
  }

  focusFold(fold) {
    const bar = this.layers.bars.querySelector(`[data-fold="${fold.number}"]`);
    bar?.focus({ preventScroll: true });
    if (bar) this.showElement(bar);
  }

  leave(fold, key) {
    if (key === "ArrowLeft" || key === "ArrowRight") { if ((key === "ArrowRight") === (this.side === 0)) this.other.focusFold(fold); return; }
    const way = key === "ArrowDown" ? 1 : -1;
    for (let r = way > 0 ? fold.last + 1 : fold.first - 1; r >= 0 && r < this.inRow.length; r += way) {
      if (this.view.bar[r]) { this.focusFold(this.view.bar[r]); return; }
      if (this.inRow[r].length) { this.view.choose(this.side, this.inRow[r][0]); return; }
    }
  }
}

function badge(sign, x) {
  const made = shape("g", { class: `badge ${WORDS[sign]}`, transform: `translate(${x} 13)` });
  made.append(shape("title", {}, WORDS[sign]), shape("circle", { r: 8 }), shape("text", { y: 4 }, SHOWN[sign] || sign));
  return made;
}

function back(left, right, top, bottom) {
  return shape("rect", { x: left - WIDTH / 2 - 7, y: top - HALF - 7, width: right - left + WIDTH + 14, height: bottom - top + HEIGHT + 14, rx: 10 });
}

