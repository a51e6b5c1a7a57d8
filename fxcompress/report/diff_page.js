// What stands around the graphs: bars per layer, tables, steps and links to nodes.

// -- bars per layer, in the order of the rows
function strips(view) {
  const [left, right] = view.panels, partner = new Map(view.step.couples), taken = new Set(partner.values());
  const layers = [...left.row.keys()].map((i) => [i, partner.get(i) ?? -1]);
  for (let j = 0; j < right.count; j++) if (!taken.has(j)) layers.push([-1, j]);
  const row = ([i, j]) => (i >= 0 ? left.row[i] : right.row[j]);
  layers.sort((a, b) => row(a) - row(b));
  const sqnr = new Map(view.step.sqnr.map(([i, j, value]) => [`${i} ${j}`, value]));
  const own = (column) => ([i, j]) => [i >= 0 ? left.graph[column][i] : 0, j >= 0 ? right.graph[column][j] : 0];
  const made = [
    strip(view, "multiply-adds", layers, own("macs"), count),
    strip(view, "weights", layers, own("bytes"), size),
    strip(view, "SQNR", view.step.sqnr.map(([i, j]) => [i, j]), ([i, j]) => [0, Math.max(0, sqnr.get(`${i} ${j}`))], decibel),
  ].filter(Boolean);
  document.getElementById("strips").replaceChildren(...made);
  document.getElementById("layers").hidden = !made.length;
}

function strip(view, name, layers, values, unit) {
  const kept = layers.map((layer) => [layer, values(layer)]).filter(([, [a, b]]) => a || b || name === "SQNR");
  if (!kept.length) return null;
  const most = Math.max(...kept.map(([, pair]) => Math.max(...pair)), 1e-9), pitch = 1000 / kept.length, fill = Math.min(pitch * 0.8, 26);
  const svg = shape("svg", { viewBox: "0 0 1000 80", preserveAspectRatio: "none", class: "strip", role: "group", "aria-label": `${name} of the layers` });
  const output = element("output", undefined, "small");
  const bars = kept.map(([[i, j], [a, b]], at) => {
    const [side, node] = j >= 0 ? [1, j] : [0, i], low = 79, x = at * pitch + (pitch - fill) / 2;
    const words = `${view.panels[side].title(node)}: ${name === "SQNR" ? unit(b) : a === b ? unit(b) : `${unit(a)} \u2192 ${unit(b)}`}`;
    const drop = name === "SQNR" && view.step.drop[1] === j;
    const bar = shape("g", { class: `layer${a === b || name === "SQNR" ? "" : " differs"}${drop ? " drop" : ""}`, tabindex: at ? "-1" : "0", role: "button", "aria-label": words });
    bar.append(shape("title", {}, words), shape("rect", { class: "reach", x: at * pitch, y: 0, width: pitch, height: 80 }));
    if (a) bar.append(shape("rect", { class: "was", x, y: low - 76 * a / most, width: fill, height: 76 * a / most + 1 }));
    if (b) bar.append(shape("rect", { class: "is", x: x + fill * 0.2, y: low - 76 * b / most, width: fill * 0.6, height: 76 * b / most + 1 }));
    bar.addEventListener("click", () => view.choose(side, node, false));
    for (const type of ["focus", "pointerenter"]) bar.addEventListener(type, () => { output.textContent = words; });
    bar.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") view.choose(side, node);
      else if (way && bars[at + way]) { bar.setAttribute("tabindex", "-1"); bars[at + way].setAttribute("tabindex", "0"); bars[at + way].focus(); }
      else return;
      event.preventDefault();
    });
    return bar;
  });
  svg.append(...bars);
  const box = element("figure"), caption = element("figcaption");
  caption.append(element("b", name), element("span", ` up to ${unit(most)}`, "small"), output);
  box.append(caption, svg);
  return box;
}

// -- tables, steps, links
function listenTables() {
  for (const button of document.querySelectorAll("button.more")) {
    const rows = document.getElementById(button.getAttribute("aria-controls"));
    const turn = (open) => { rows.hidden = !open; button.setAttribute("aria-expanded", String(open)); };
    button.addEventListener("click", () => turn(rows.hidden));
    turn(false);
  }
  document.querySelector("main").addEventListener("click", (event) => {
    const link = event.target.closest("[data-node]");
    if (link) goTo(link.dataset.node);
  });
}

const known = data.steps.some(Boolean), tabs = [...document.querySelectorAll('[role="tab"]')];
const view = known ? new View() : null;

function openStep(number) {
  for (const part of document.querySelectorAll(".step")) part.hidden = Number(part.dataset.step) !== number;
  tabs.forEach((tab, at) => { tab.setAttribute("aria-selected", String(at === number)); tab.tabIndex = at === number ? 0 : -1; });
  tabs[number]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  for (const button of document.querySelectorAll("[data-turn]")) {
    const next = number + Number(button.dataset.turn);
    button.disabled = next < 0 || next >= tabs.length;
  }
  current = number;
  view?.load(number);
}

function goTo(name) {
  const [, step, side, i] = /^(\d+)-(base|head)-(\d+)$/.exec(name) || [];
  if (step === undefined || !data.steps[step]) return;
  if (Number(step) !== current) openStep(Number(step));
  const place = SIDES.indexOf(side);
  if (Number(i) >= view.panels[place].count) return;
  document.getElementById("graphs").scrollIntoView({ block: "nearest" });
  view.choose(place, Number(i));
}

let current = -1;
listenTables();
tabs.forEach((tab, at) => tab.addEventListener("click", () => openStep(at)));
for (const button of document.querySelectorAll("[data-turn]")) button.addEventListener("click", () => openStep(current + Number(button.dataset.turn)));
document.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], free = event.target === document.body || event.target.closest("#steps");
  if (!way || !free || event.ctrlKey || event.metaKey || event.altKey || !tabs[current + way]) return;
  openStep(current + way);
  if (event.target !== document.body) tabs[current].focus();
  event.preventDefault();
});
openStep(0);
if (location.hash.startsWith("#node-")) goTo(location.hash.slice(6));
document.documentElement.dataset.ready = String(data.steps.filter(Boolean).length);
