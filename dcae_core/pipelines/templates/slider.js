"use strict";
// Every image is a card with a viewer for each model. A card has one place of the line and one part that is looked at.
for (const card of document.querySelectorAll("[data-card]")) {
  const viewers = [...card.querySelectorAll(".viewer")];
  const state = { line: 0.5, zoom: 1, x: 0, y: 0 };  // x, y: the corner that is looked at, as a share of the image

  function draw() {
    state.line = Math.min(Math.max(state.line, 0), 1);
    state.zoom = Math.min(Math.max(state.zoom, 1), 32);
    state.x = Math.min(Math.max(state.x, 0), 1 - 1 / state.zoom);
    state.y = Math.min(Math.max(state.y, 0), 1 - 1 / state.zoom);
    for (const viewer of viewers) {
      const place = `${-100 * state.zoom * state.x}%, ${-100 * state.zoom * state.y}%`;
      for (const image of viewer.querySelectorAll("img")) image.style.transform = `translate(${place}) scale(${state.zoom})`;
      viewer.querySelector(".layer").style.clipPath = `inset(0 ${100 - 100 * state.line}% 0 0)`;
      viewer.querySelector(".handle").style.left = `${100 * state.line}%`;
      viewer.classList.toggle("zoomed", state.zoom > 1);
      viewer.setAttribute("aria-valuenow", Math.round(100 * state.line));
    }
  }

  function zoomAt(x, y, factor) {  // x, y: a share of the viewer that stays where it is
    const before = state.zoom;
    state.zoom = Math.min(Math.max(before * factor, 1), 32);
    state.x += x / before - x / state.zoom;
    state.y += y / before - y / state.zoom;
    draw();
  }

  for (const viewer of viewers) {
    const pointers = new Map();
    let movesLine = true;
    const share = (event) => {
      const box = viewer.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };

    viewer.addEventListener("pointerdown", (event) => {
      viewer.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, share(event));
      movesLine = state.zoom === 1 || event.target.classList.contains("handle");
      if (movesLine && pointers.size === 1) { state.line = share(event)[0]; draw(); }
    });
    viewer.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = pointers.get(event.pointerId), now = share(event);
      const wide = pointers.size === 2 ? spread() : 0;
      pointers.set(event.pointerId, now);
      if (pointers.size === 2) {
        const middle = [...pointers.values()].reduce((a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
        zoomAt(...middle, spread() / Math.max(wide, 1e-6));
      } else if (movesLine) {
        state.line = now[0];
        draw();
      } else {
        state.x -= (now[0] - before[0]) / state.zoom;
        state.y -= (now[1] - before[1]) / state.zoom;
        draw();
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      viewer.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
    viewer.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomAt(...share(event), Math.exp(-event.deltaY / 400));
    }, { passive: false });
    viewer.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step && event.shiftKey) {
        state.x += 0.1 * step[0] / state.zoom;
        state.y += 0.1 * step[1] / state.zoom;
      } else if (step && step[0]) state.line += 0.02 * step[0];
      else if (event.key === "+" || event.key === "=") return zoomAt(0.5, 0.5, 1.25);
      else if (event.key === "-") return zoomAt(0.5, 0.5, 0.8);
      else if (event.key === "0") Object.assign(state, { zoom: 1, x: 0, y: 0 });
      else return;
      event.preventDefault();
      draw();
    });
  }
  draw();
}
