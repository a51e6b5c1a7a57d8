// The drawings are complete without this script; it adds choosing, finding and zooming. Texts from the model only ever
// become text nodes.
(() => {
  const nodes = JSON.parse(document.getElementById("data").textContent);
  const panels = new Map();

  class Panel {
    constructor(root) {
      this.root = root;
      this.key = root.dataset.graph;
      this.nodes = nodes[this.key];
      this.canvas = root.querySelector(".canvas");
      this.svg = root.querySelector("svg");
      this.size = { width: this.svg.viewBox.baseVal.width, height: this.svg.viewBox.baseVal.height };
      this.place = new Map(this.nodes.map((node, i) => [node.id, i]));
      this.readers = this.nodes.map(() => []);
      this.sources = this.nodes.map((node) => node.in.filter((id) => this.place.has(id)).map((id) => this.place.get(id)));
      this.sources.forEach((list, i) => list.forEach((s) => this.readers[s].push(i)));
      this.wires = this.nodes.map(() => []);
      for (const wire of this.svg.querySelectorAll(".wires path")) {
        this.wires[wire.dataset.s].push(wire);
        this.wires[wire.dataset.t].push(wire);
      }
      this.chosen = -1;
      this.scale = 1;
      this.listen();
      this.fit();
      if (this.nodes.length) this.box(0).setAttribute("tabindex", "0");
    }

    get pair() { return this.root.closest(".graph"); }
    get twin() { return panels.get(this.key.replace(/before$|after$/, (side) => (side === "before" ? "after" : "before"))); }
    box(i) { return document.getElementById(`${this.key}-${i}`); }

    // -- zoom and pan
    zoom(scale, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
      const next = Math.min(3, Math.max(0.08, scale));
      const factor = next / this.scale;
      const left = (this.canvas.scrollLeft + x) * factor - x;
      const top = (this.canvas.scrollTop + y) * factor - y;
      this.scale = next;
      this.svg.setAttribute("width", this.size.width * next);
      this.svg.setAttribute("height", this.size.height * next);
      this.canvas.scrollLeft = left;
      this.canvas.scrollTop = top;
    }

    fit() {
      const room = this.canvas.clientWidth - 4;
      this.zoom(Math.min(1, Math.max(0.7, room / this.size.width)));
      if (!this.nodes.length) return;
      const first = this.box(0).getBoundingClientRect(), view = this.canvas.getBoundingClientRect();
      this.canvas.scrollLeft += first.left + first.width / 2 - view.left - view.width / 2;
    }

    show(i) {
      const box = this.box(i).getBoundingClientRect();
      const view = this.canvas.getBoundingClientRect();
      if (box.top < view.top + 10 || box.bottom > view.bottom - 10) this.canvas.scrollTop += box.top - view.top - view.height / 2;
      if (box.left < view.left + 5 || box.right > view.right - 5) this.canvas.scrollLeft += box.left - view.left - view.width / 2 + box.width / 2;
    }

    // -- highlights
    mark(i, on) {
      for (const wire of this.wires[i]) wire.classList.toggle("near", on);
      for (const other of [...this.sources[i], ...this.readers[i]]) this.box(other).classList.toggle("near", on);
    }

    clear() {
      for (const old of this.svg.querySelectorAll(".near, .chosen, .twin")) old.classList.remove("near", "chosen", "twin");
    }

    // Nodes of the other graph that this one was made of, or that it went into.
    relatives(i) {
      const names = (node) => (node.from.length ? node.from : [node.id]);
      const own = new Set(names(this.nodes[i]));
      return this.twin ? this.twin.nodes.map((node, j) => [node, j]).filter(([node]) => names(node).some((n) => own.has(n))).map(([, j]) => j) : [];
    }

    choose(i, focus = true) {
      for (const panel of [this, this.twin]) if (panel) { panel.clear(); panel.chosen = -1; }
      for (const old of this.svg.querySelectorAll('.box[tabindex="0"]')) old.setAttribute("tabindex", "-1");
      this.chosen = i;
      const box = this.box(i);
      box.classList.add("chosen");
      box.setAttribute("tabindex", "0");
      this.mark(i, true);
      if (focus) box.focus({ preventScroll: true });
      this.show(i);
      const relatives = this.relatives(i);
      for (const j of relatives) this.twin.box(j).classList.add("twin");
      if (relatives.length) this.twin.show(relatives[0]);
      describe(this, i, relatives);
      const where = `#node-${this.key}-${i}`;
      if (location.hash !== where) history.replaceState(null, "", where);
    }

    find(text) {
      const wanted = text.trim().toLowerCase();
      const hits = [];
      this.nodes.forEach((node, i) => {
        const hit = wanted !== "" && `${node.kind} ${node.name} ${node.id} ${node.shape} ${node.detail}`.toLowerCase().includes(wanted);
        this.box(i).classList.toggle("hit", hit);
        if (hit) hits.push(i);
      });
      this.root.querySelector("output").textContent = wanted ? `${hits.length} found` : "";
      return hits;
    }

    // -- events
    listen() {
      for (const [type, on] of [["mouseover", true], ["mouseout", false]]) {
        this.svg.addEventListener(type, (event) => {
          const i = this.at(event.target);
          if (i >= 0 && i !== this.chosen) this.mark(i, on);
          if (!on && this.chosen >= 0) this.mark(this.chosen, true);
        });
      }
      this.canvas.addEventListener("keydown", (event) => this.key_(event));
      wheelZooms(this.canvas, (factor, x, y) => this.zoom(this.scale * factor, x, y));
      const dragged = grabbable(this.canvas);
      this.svg.addEventListener("click", (event) => {
        const i = this.at(event.target);
        if (i >= 0 && !dragged()) this.choose(i);
      });
      for (const button of this.root.querySelectorAll("[data-zoom]")) {
        button.addEventListener("click", () => this.step(button.dataset.zoom));
      }
      const field = this.root.querySelector("input");
      field.addEventListener("input", () => { const hits = this.find(field.value); if (hits.length) this.show(hits[0]); });
      field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        const hits = this.find(field.value);
        if (hits.length) this.choose(hits[(hits.indexOf(this.chosen) + 1) % hits.length], false);
      });
    }

    at(element) {
      const box = element.closest(".box");
      return box ? Number(box.id.slice(this.key.length + 1)) : -1;
    }

    step(way) {
      if (way === "fit") this.fit();
      else this.zoom(this.scale * (way === "in" ? 1.25 : 0.8));
    }

    key_(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const ways = { "+": "in", "=": "in", "-": "out", "0": "fit" };
      const i = this.at(event.target);
      if (event.key in ways) this.step(ways[event.key]);
      else if (event.key === "/") this.root.querySelector("input").focus();
      else if (i >= 0 && (event.key === "Enter" || event.key === " ")) this.choose(i);
      else if (i >= 0 && event.key.startsWith("Arrow")) this.walk(i, event.key);
      else return;
      event.preventDefault();
    }

    // Up and down follow the edges; left and right go through the nodes in the order in which they run.
    walk(i, key) {
      const next = { ArrowUp: this.sources[i][0], ArrowDown: this.readers[i][0], ArrowLeft: i - 1, ArrowRight: i + 1 }[key];
      if (next !== undefined && next >= 0 && next < this.nodes.length) this.choose(next);
    }
  }

  function describe(panel, i, relatives) {
    const node = panel.nodes[i];
    const list = element("dl");
    const row = (name, ...parts) => { list.append(element("dt", name)); const cell = element("dd"); cell.append(...parts); list.append(cell); };
    const links = (target, places) => places.map((j) => {
      const button = element("button", `${target.nodes[j].kind} ${target.nodes[j].name}`);
      button.type = "button";
      button.addEventListener("click", () => target.choose(j));
      return button;
    });
    row("name", element("code", node.name));
    if (node.id !== node.name) row("value", element("code", node.id));
    if (node.shape) row("shape", element("code", node.shape));
    if (node.detail) row("settings", element("code", node.detail));
    if (node.from.length) row("made of", element("code", node.from.join(", ")));
    if (relatives.length) row(panel.key.endsWith("after") ? "was, before" : "is now", ...links(panel.twin, relatives));
    if (panel.sources[i].length) row("reads", ...links(panel, panel.sources[i]));
    if (panel.readers[i].length) row("read by", ...links(panel, panel.readers[i]));
    if (node.source) row("code", element("code", node.source));
    const side = panel.pair.querySelector("aside");
    side.replaceChildren(element("h3", node.kind.replaceAll("+", " + ")), list);
    side.scrollTop = 0;
  }

  for (const root of document.querySelectorAll("[data-graph]")) panels.set(root.dataset.graph, new Panel(root));
  const wanted = /^#node-(\d+-(?:before|after))-(\d+)$/.exec(location.hash);
  if (wanted && panels.has(wanted[1]) && Number(wanted[2]) < panels.get(wanted[1]).nodes.length) panels.get(wanted[1]).choose(Number(wanted[2]));
  document.documentElement.dataset.ready = String(panels.size);
})();
