// Both panels: rows, folds, the chosen node.
const LISTED = 12;  // nodes in one line of the details

class View {
  constructor() {
    this.scale = 1;
    this.nothing();
    this.panels = [new Panel(this, 0), new Panel(this, 1)];
    this.aside = document.querySelector("aside");
    this.field = document.querySelector('.tools input[type="search"]');
    this.output = document.querySelector(".tools output");
    this.listen();
  }

  nothing() { Object.assign(this, { chosen: null, twins: [[], []], mates: [[], []], hits: [[], []] }); }

  load(number) {
    this.number = number;
    this.step = data.steps[number];
    for (const part of ["graphs", "layers"]) document.getElementById(part).hidden = !this.step;
    if (!this.step) return;
    this.every = [];
    const read = (list, depth) => list.map(([first, last, title, where, inner]) => {
      const fold = { first, last, title: text(title), where: text(where), depth, open: false, number: this.every.length };
      this.every.push(fold);
      fold.inner = read(inner, depth + 1);
      return fold;
    });
    this.folds = { roots: read(this.step.folds, 0), open: [], closed: [] };
    this.partner = [new Map(), new Map()];
    for (const pair of this.step.pairs) for (const side of [0, 1]) this.partner[side].set(pair[side], pair);
    this.groups = [new Map(), new Map()];
    for (const group of this.step.groups) for (const side of [0, 1]) for (const i of group[side]) this.groups[side].set(i, group);
    this.notes = [new Map(), new Map()];
    for (const [side, i, ...words] of this.step.notes) this.notes[side].set(i, [...(this.notes[side].get(i) || []), words.map(text)]);
    this.nothing();
    for (const panel of this.panels) panel.load(this.step);
    this.changes = this.listed();
    this.lay();
    this.fit();
    this.canvasTop(0);
    this.hint();
    strips(this);
  }

  canvasTop(top) { for (const panel of this.panels) panel.canvas.scrollTop = top; }

  // Marked nodes from top to bottom; of a group only the first one.
  listed() {
    const found = [], seen = new Set();
    for (const side of [1, 0]) for (const i of this.panels[side].marks.keys()) {
      const group = this.groups[side].get(i), partner = this.partner[side].get(i);
      if (group ? seen.has(group) : side === 0 && partner && this.panels[1].marks.has(partner[1])) continue;
      if (group) seen.add(group);
      found.push({ side, i, row: this.panels[side].row[i] });
    }
    return found.sort((a, b) => a.row - b.row || a.side - b.side);
  }

  // -- rows and folds
  lay() {
    this.y = new Array(this.step.rows);
    this.bar = new Array(this.step.rows).fill(null);
    Object.assign(this.folds, { open: [], closed: [] });
    let y = MARGIN;
    const open = (first, last) => { for (let r = first; r <= last; r++, y += PITCH) this.y[r] = y; };
    const visit = (folds, first, last) => {
      for (const fold of folds) {
        open(first, fold.first - 1);
        if (fold.open) { this.folds.open.push(fold); visit(fold.inner, fold.first, fold.last); }
        else {
          this.folds.closed.push(fold);
          for (let r = fold.first; r <= fold.last; r++) { this.y[r] = y; this.bar[r] = fold; }
          y += PITCH;
        }
        first = fold.last + 1;
      }
      open(first, last);
    };
    visit(this.folds.roots, 0, this.step.rows - 1);
    this.height = y - PITCH + MARGIN;
    for (const panel of this.panels) panel.draw();
    for (const panel of this.panels) panel.resize();
  }

  turn(number, panel) {
    const fold = this.every[number];
    const anchor = this.y[fold.first];
    fold.open = !fold.open;
    this.lay();
    this.canvasTop(this.panels[0].canvas.scrollTop + (this.y[fold.first] - anchor) * this.scale);
    if (!panel) return;
    if (!fold.open) panel.focusFold(fold);
    else {
      const inside = panel.inRow.slice(fold.first, fold.last + 1).find((list) => list.length);
      if (inside) panel.go(inside[0]);
    }
  }

  reveal(row) {
    let changed = false;
    for (const fold of this.every) if (!fold.open && fold.first <= row && row <= fold.last) { fold.open = true; changed = true; }
    if (changed) this.lay();
  }

  foldAll(open) {
    for (const fold of this.every) fold.open = open;
    this.lay();
    if (this.chosen && !this.bar[this.panels[this.chosen.side].row[this.chosen.i]]) this.panels[this.chosen.side].show(this.chosen.i);
  }

  // -- zoom
  zoom(scale, x, y, panel = this.panels[0]) {
    const next = Math.min(3, Math.max(0.08, scale)), factor = next / this.scale;
    const points = this.panels.map(({ canvas }, side) => [
      side === panel.side && x !== undefined ? x : canvas.clientWidth / 2, y === undefined ? canvas.clientHeight / 2 : y,
    ]);
    const aims = this.panels.map(({ canvas }, k) => [(canvas.scrollLeft + points[k][0]) * factor - points[k][0], (canvas.scrollTop + points[k][1]) * factor - points[k][1]]);
    this.scale = next;
    this.panels.forEach((one, k) => {
      one.resize();
      [one.canvas.scrollLeft, one.canvas.scrollTop] = aims[k];
    });
  }

  fit() {
    const room = Math.min(...this.panels.map((panel) => (panel.canvas.clientWidth - 4) / panel.frame.width));
    this.zoom(Math.min(1, Math.max(0.7, room)));
    for (const panel of this.panels) panel.centre();
  }

  // -- choosing
  relatives(side, i) {
    const pair = this.partner[side].get(i), group = this.groups[side].get(i);
    return [...new Set([...(pair ? [pair[1 - side]] : []), ...(group ? group[1 - side] : [])])];
  }

  choose(side, i, focus = true) {
    const panel = this.panels[side];
    this.reveal(panel.row[i]);
    this.chosen = { side, i };
    const group = this.groups[side].get(i);
    this.twins = side ? [this.relatives(1, i), []] : [[], this.relatives(0, i)];
    this.mates = [[], []];
    this.mates[side] = group ? group[side].filter((k) => k !== i) : [];
    for (const one of this.panels) one.mark();
    if (focus) panel.boxes.get(i).focus({ preventScroll: true });
    panel.show(i);
    const twin = this.twins[1 - side][0];
    if (twin !== undefined) {
      if (this.bar[panel.other.row[twin]] === null) panel.other.show(twin);
      panel.show(i);
    }
    this.describe(panel, i);
    const where = `#node-${this.number}-${SIDES[side]}-${i}`;
    if (location.hash !== where) history.replaceState(null, "", where);
  }

  clear() {
    this.field.value = "";
    this.nothing();
    this.output.textContent = "";
    for (const panel of this.panels) panel.mark();
    this.hint();
    history.replaceState(null, "", location.pathname + location.search);
  }

  jump(way) {
    if (!this.changes.length) return;
    const here = this.chosen ? this.panels[this.chosen.side].row[this.chosen.i] : -1;
    let at = this.chosen ? this.changes.findIndex((c) => c.side === this.chosen.side && c.i === this.chosen.i) : -1;
    if (at >= 0) at += way;
    else at = way > 0 ? this.changes.findIndex((c) => c.row >= here) : this.changes.findLastIndex((c) => c.row <= here);
    const next = this.changes[(at + this.changes.length) % this.changes.length];
    this.choose(next.side, next.i);
  }

  // -- finding
  find(words) {
    const wanted = words.trim().toLowerCase();
    this.hits = this.panels.map((panel) => {
      const g = panel.graph, found = [];
      if (wanted) for (let i = 0; i < panel.count; i++) {
        if ([g.kind[i], g.name[i], g.id[i], g.path[i], g.shape[i], g.detail[i]].some((at) => text(at).toLowerCase().includes(wanted))) found.push(i);
      }
      return found;
    });
    for (const panel of this.panels) panel.mark();
    this.output.textContent = wanted ? `${this.hits[0].length} + ${this.hits[1].length} found` : "";
  }

  // The next one below the chosen node: first those of head, then those that are only in base.
  nextHit() {
    const list = [...this.hits[1].map((i) => [1, i]), ...this.hits[0].filter((i) => !this.relatives(0, i).some((j) => this.hits[1].includes(j))).map((i) => [0, i])];
    if (!list.length) return;
    const at = this.chosen ? list.findIndex(([side, i]) => side === this.chosen.side && i === this.chosen.i) : -1;
    this.choose(...list[(at + 1) % list.length], false);
  }

  // -- details
  hint() {
    const keys = [["n, p", "next change, change before"], ["arrows", "along the edges, across to the other graph"], ["Enter", "choose, unfold"], ["/", "find"],
      ["+ \u2212 0", "zoom in, out, fit"], ["f, u", "fold, unfold"], ["Esc", "back"]];
    const list = element("dl", undefined, "keys");
    for (const [key, words] of keys) list.append(element("dt", key), element("dd", words));
    const marked = this.changes.length;
    this.aside.replaceChildren(
      element("h3", marked ? `${marked} place${marked === 1 ? "" : "s"} differ${marked === 1 ? "s" : ""}` : "The graphs are the same"),
      element("p", "Choose a node to see what changed there, its settings and where it stands in your code. Partners stand at the same height.", "small"), list);
  }

  describe(panel, i) {
    const { side, graph: g } = panel, list = element("dl");
    const row = (name, ...parts) => { list.append(element("dt", name)); const cell = element("dd"); cell.append(...parts); list.append(cell); };
    const code = (at) => element("code", text(at));
    const link = (target, k) => {
      const button = element("button", target.title(k));
      button.type = "button";
      button.addEventListener("click", () => this.choose(target.side, k));
      return button;
    };
    const links = (target, places) => [
      ...places.slice(0, LISTED).map((k) => link(target, k)),
      ...(places.length > LISTED ? [element("span", `and ${places.length - LISTED} more`, "small")] : []),
    ];
    const twins = this.twins[1 - side], group = this.groups[side].get(i), pair = this.partner[side].get(i);
    const signs = [...(panel.marks.get(i) || "")];
    const said = [[side, i], ...twins.map((k) => [1 - side, k])].flatMap(([s, k]) => this.notes[s].get(k) || []);
    if (said.length) row("what changed", ...said.map(([sign, what, detail]) => {
      const line = element("p", undefined, "note");
      line.append(element("span", sign, `sign ${WORDS[sign]}`), ` ${what} ${detail}`);
      return line;
    }));
    if (group && !said.length) row("part of", code(group[2]));
    if (twins.length) row(side ? "was, in base" : "is now, in head", ...links(panel.other, twins));
    if (this.mates[side].length) row("together with", ...links(panel, this.mates[side]));
    if (pair && pair[2] < 100) row("sure", `${pair[2]} %${text(pair[3]) ? `, by ${text(pair[3])}` : ""}`);
    row("name", code(g.name[i]));
    if (g.id[i] !== g.name[i]) row("value", code(g.id[i]));
    if (text(g.path[i]) && g.path[i] !== g.name[i]) row("module", code(g.path[i]));
    if (text(g.shape[i])) row("shape", code(g.shape[i]));
    if (text(g.detail[i])) row("settings", code(g.detail[i]));
    if (g.macs[i]) row("multiply-adds", count(g.macs[i]));
    if (g.bytes[i]) row("weights", size(g.bytes[i]));
    const sqnr = this.step.sqnr.find((line) => line[side] === i);
    if (sqnr) row("SQNR here", decibel(sqnr[2]));
    if (g.from[i].length) row("made of", element("code", g.from[i].map(text).join(", ")));
    if (g.in[i].length) row("reads", ...links(panel, g.in[i]));
    if (panel.readers[i].length) row("read by", ...links(panel, panel.readers[i]));
    if (text(g.source[i])) row("code", code(g.source[i]));
    const head = element("h3", `${text(g.kind[i]).replaceAll("+", " + ")} `);
    head.append(...signs.map((sign) => element("span", WORDS[sign], `tag ${WORDS[sign]}`)));
    this.aside.replaceChildren(element("p", SIDES[side], "small"), head, list);
    this.aside.scrollTop = 0;
  }

  // -- events
  listen() {
    const acts = {
      back: () => this.jump(-1), next: () => this.jump(1), fold: () => this.foldAll(false), unfold: () => this.foldAll(true),
      out: () => this.zoom(this.scale * 0.8), in: () => this.zoom(this.scale * 1.25), fit: () => this.fit(),
    };
    for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => acts[button.dataset.do]());
    const keys = { n: "next", p: "back", f: "fold", u: "unfold", "-": "out", "+": "in", "=": "in", 0: "fit" };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.step) return;
      if (event.key === "Escape") this.clear();
      else if (event.target.closest("input")) return;
      else if (event.key === "/") { this.field.focus(); this.field.select(); }
      else if (event.key in keys) acts[keys[event.key]]();
      else return;
      event.preventDefault();
    });
    this.field.addEventListener("input", () => this.find(this.field.value));
    this.field.addEventListener("keydown", (event) => { if (event.key === "Enter") this.nextHit(); });
  }
}

