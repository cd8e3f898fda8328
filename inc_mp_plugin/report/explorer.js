// The slider over the map: of each point it shows the plan, its figures and its command.
"use strict";
(() => {
  const box = document.getElementById("explorer");
  const { points, cells } = JSON.parse(document.getElementById("explorer-data").textContent);
  const slider = box.querySelector("input"), figures = box.querySelector("dl");
  const command = box.querySelector("code"), back = box.querySelector("button");
  const map = new Map();
  for (const cell of document.querySelectorAll("td[data-cell]")) {
    map.set(cell, { html: cell.innerHTML, kind: cell.className, title: cell.title });
  }

  const stateAt = (states, point) => states.filter(([start]) => start <= point).at(-1);

  const share = (state, point) => (state && point.cost ? (100 * (state[2] + point.shift * state[3])) / point.cost : 0);

  function draw(number) {
    const point = points[number];
    const shown = [...map.keys()].map((cell) => {
      const state = stateAt(cells[cell.dataset.cell]?.states ?? [], number);
      return { cell, state, percent: share(state, point) };
    });
    const largest = Math.max(...shown.map(({ percent }) => percent), 0);
    for (const { cell, state, percent } of shown) {
      const lowered = Boolean(state && state[1]);
      const level = largest > 0 ? 1 + Math.min(3, Math.floor(4 * Math.sqrt(Math.max(0, percent) / largest))) : 1;
      cell.className = lowered ? `l${level}` : "l0";
      cell.textContent = lowered ? percent.toFixed(1) : "·";
      const name = cells[cell.dataset.cell]?.label ?? map.get(cell).title.split(":")[0];
      cell.title = lowered ? `${name}: lowered, ${percent.toFixed(2)} % of this plan's cost` : `${name}: base format`;
    }
    figures.replaceChildren(...Object.entries(point.figures).map(([label, value]) => {
      const tile = document.createElement("div");
      tile.className = "tile";
      for (const [tag, text] of [["dt", label], ["dd", value]]) {
        tile.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      return tile;
    }));
    command.textContent = point.command || "nothing is lowered";
    slider.setAttribute("aria-valuetext", Object.entries(point.figures).slice(0, 3).flat().join(" "));
    back.hidden = false;
  }

  function restore() {
    for (const [cell, { html, kind, title }] of map) {
      Object.assign(cell, { innerHTML: html, className: kind, title });
    }
    figures.replaceChildren();
    command.textContent = "move the slider";
    slider.value = slider.defaultValue;
    slider.setAttribute("aria-valuetext", "the plan");
    back.hidden = true;
  }

  slider.addEventListener("input", () => draw(Number(slider.value)));
  back.addEventListener("click", restore);
  restore();
  box.hidden = false;
})();
