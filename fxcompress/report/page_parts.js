"use strict";
// What the pages of a report share. Texts from the model only ever become text nodes.

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// Scroll a canvas by dragging it. The answer tells whether the last press of the button was a drag, not a click.
function grabbable(canvas) {
  let dragged = false;
  canvas.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button !== 0 || event.pointerType === "touch") return;
    const start = { x: event.clientX, y: event.clientY, left: canvas.scrollLeft, top: canvas.scrollTop };
    const move = (now) => {
      const dx = now.clientX - start.x, dy = now.clientY - start.y;
      if (!dragged && Math.hypot(dx, dy) < 5) return;
      dragged = true;
      canvas.classList.add("dragging");
      canvas.scrollLeft = start.left - dx;
      canvas.scrollTop = start.top - dy;
    };
    const end = () => {
      window.removeEventListener("pointermove", move);
      canvas.classList.remove("dragging");
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", end, { once: true });
    window.addEventListener("pointercancel", end, { once: true });
  });
  return () => dragged;
}

// Ctrl and the wheel zoom around the pointer.
function wheelZooms(canvas, zoom) {
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const view = canvas.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - view.left, event.clientY - view.top);
  }, { passive: false });
}
