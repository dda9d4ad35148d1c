// The weights as a matrix: a row for each query, a column for each key.

import { app, choose, hover, marked, shareOf, walk } from "./app.js";
import { colour, inkOn } from "./colours.js";
import { cut, html, svg, widest } from "./dom.js";
import { say } from "./i18n.js";
import { card, stage, whenResized } from "./parts.js";

const LARGEST_CELL = 46, HIGHEST = 620, LONGEST = 15;

export function matrixView() {
  const canvas = html("canvas", { "aria-hidden": "true" });
  const labels = svg("svg", { "aria-hidden": "true" });
  const area = stage("matrix", (event) => walk(event), canvas, labels);
  let grid = null;

  function layout() {
    const { queries, keys } = app.attention;
    const wide = (tokens) => widest(tokens.map((token) => cut(token.name, LONGEST)));
    const left = wide(queries) + 12;
    const room = Math.max(area.clientWidth - left - 2, 40);
    const cell = Math.min(room / keys.length, LARGEST_CELL, Math.max(HIGHEST / queries.length, 1));
    const turned = wide(keys) > cell - 4;
    const top = turned ? wide(keys) + 10 : 22;
    return { left, top, cell, turned, every: Math.max(1, Math.ceil(13 / cell)) };
  }

  function draw() {
    if (!area.clientWidth) return;
    const { attention, head } = app;
    const { queries, keys } = attention;
    grid = layout();
    const { left, top, cell, turned, every } = grid;
    const [width, height] = [left + cell * keys.length + 2, top + cell * queries.length + 2];
    const sharp = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(height * sharp);
    canvas.style.width = labels.style.width = `${width}px`;
    canvas.style.height = labels.style.height = `${height}px`;
    labels.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const share = shareOf();
    const gap = cell > 8 ? 1 : 0;
    const none = getComputedStyle(area).getPropertyValue("--none");
    pen.font = "10.5px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let i = 0; i < queries.length; i++) {
      for (let j = 0; j < keys.length; j++) {
        const [x, y] = [left + j * cell, top + i * cell];
        if (!attention.has(i, j)) {
          pen.fillStyle = none;
          if (cell > 8) pen.fillRect(x + cell / 2 - 1, y + cell / 2 - 1, 2, 2);
          continue;
        }
        const weight = attention.at(head, i, j);
        pen.fillStyle = colour(share(weight));
        pen.fillRect(x, y, cell - gap, cell - gap);
        if (cell >= 26) {
          pen.fillStyle = inkOn(share(weight));
          const text = weight === 0 ? "0" : weight.toFixed(2).replace(/^0/, "");
          pen.fillText(text, x + (cell - gap) / 2, y + cell / 2);
        }
      }
    }
    const name = (token) => cut(token.name, LONGEST);
    labels.replaceChildren(
      ...queries.map((token, i) => i % every ? null : svg("text", {
        x: left - 7, y: top + (i + 0.5) * cell, "text-anchor": "end", "dominant-baseline": "central", class: `q q${i}`,
      }, name(token))).filter(Boolean),
      ...keys.map((token, j) => {
        if (j % every) return null;
        const x = left + (j + 0.5) * cell;
        const place = turned ? { transform: `translate(${x} ${top - 6}) rotate(-90)`, "dominant-baseline": "central" }
          : { x, y: top - 8, "text-anchor": "middle" };
        return svg("text", { ...place, class: `k k${j}` }, name(token));
      }).filter(Boolean),
      svg("rect", { class: "band row" }), svg("rect", { class: "band column" }), svg("rect", { class: "cell" }),
    );
    mark();
  }

  function mark() {
    if (!grid) return;
    const { left, top, cell } = grid;
    const { i, j } = marked();
    const { queries, keys } = app.attention;
    const put = (rect, x, y, w, h) => {
      for (const [name, value] of Object.entries({ x, y, width: w, height: h })) rect.setAttribute(name, value);
    };
    const [row, column, one] = [".row", ".column", ".cell"].map((name) => labels.querySelector(name));
    if (!row) return;
    put(row, left - 1, top + i * cell - 1, cell * keys.length + 1, cell + 1);
    const none = j === null;
    put(column, left + (none ? 0 : j) * cell - 1, top - 1, none ? 0 : cell + 1, cell * queries.length + 1);
    put(one, left + (none ? 0 : j) * cell - 1, top + i * cell - 1, none ? 0 : cell + 1, none ? 0 : cell + 1);
    for (const text of labels.querySelectorAll("text.on")) text.classList.remove("on");
    labels.querySelector(`.q${i}`)?.classList.add("on");
    if (!none) labels.querySelector(`.k${j}`)?.classList.add("on");
  }

  function pairAt(event) {
    if (!grid) return null;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - grid.left, event.clientY - box.top - grid.top];
    const [i, j] = [Math.floor(y / grid.cell), Math.floor(x / grid.cell)];
    const { queries, keys } = app.attention;
    if (i < 0 || i >= queries.length || j >= keys.length) return null;
    return j < 0 ? { i, j: null } : { i, j };
  }

  area.addEventListener("pointermove", (event) => event.pointerType === "touch" || hover(pairAt(event)));
  area.addEventListener("pointerleave", () => hover(null));
  area.addEventListener("click", (event) => {
    const pair = pairAt(event);
    if (pair) choose(pair.i, pair.j ?? app.attention.ranked(app.head, pair.i)[0] ?? 0);
  });
  whenResized(area, draw);
  const scale = html("div", { class: "scale", "aria-hidden": "true" });

  return {
    element: card("matrix", "matrix", "matrixHint", area, scale),
    draw() {
      draw();
      const most = app.scale === "one" ? 1 : app.attention.largest(app.head);
      scale.replaceChildren("0", html("span", { class: "ramp" }), String(+most.toFixed(3)));
    },
    mark,
    title: say("matrix"),
  };
}
