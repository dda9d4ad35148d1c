// Every token is a point with two features, which can be moved; the weights follow.

import { app, choose, chooseQuery, marked, shareOf } from "./app.js";
import { stroke } from "./colours.js";
import { cut, svg } from "./dom.js";
import { say } from "./i18n.js";
import { card, whenResized } from "./parts.js";

const LIMIT = 2.2, STEP = 0.05, STRIDE = 0.25;
const hold = (x) => Math.round(Math.min(Math.max(x, -LIMIT), LIMIT) * 1000) / 1000;

export function planeView(recompute) {
  const lines = svg("g"), axes = svg("g", { class: "axes", "aria-hidden": "true" }), points = svg("g");
  const blend = svg("path", { class: "blend", d: "M-5-5L5 5M5-5L-5 5" });
  const picture = svg("svg", { role: "group", "aria-labelledby": "plane-title" }, axes, lines, blend, points);
  const area = document.createElement("div");
  area.className = "stage plane";
  area.append(picture);
  let made = [], known = null, side = 0;

  const place = ([x, y]) => [side / 2 + (x / (LIMIT + 0.25)) * (side / 2), side / 2 - (y / (LIMIT + 0.25)) * (side / 2)];

  function move(token, x, y) {
    token.x = [hold(x), hold(y)];
    recompute();
  }

  function point(token, isQuery, n) {
    const both = app.attention.shared;
    const shape = both || !isQuery ? svg("circle", { r: isQuery ? 7 : 6 }) : svg("rect", { x: -5.5, y: -5.5, width: 11, height: 11, transform: "rotate(45)" });
    const text = svg("text", { x: 10, y: isQuery && !both ? -6 : 12 }, cut(token.name, 12));
    const element = svg("g", { class: `point ${isQuery ? "isquery" : "iskey"}`, tabindex: "0", role: "button", id: `point-${isQuery ? "q" : "k"}${n}` }, svg("circle", { r: 16, class: "grip" }), shape, text);
    const pick = () => (isQuery ? chooseQuery(n, false) : choose(app.chosen.i, n, false));
    element.addEventListener("focus", pick);
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      element.focus({ preventScroll: true });
      event.preventDefault();
    });
    element.addEventListener("pointermove", (event) => {
      if (!element.hasPointerCapture(event.pointerId)) return;
      const box = picture.getBoundingClientRect();
      const scale = (2 * (LIMIT + 0.25)) / box.width;
      move(token, (event.clientX - box.left - box.width / 2) * scale, -(event.clientY - box.top - box.height / 2) * scale);
    });
    element.addEventListener("keydown", (event) => {
      const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
      if (!dx && !dy) return;
      event.preventDefault();
      const by = event.shiftKey ? STRIDE : STEP;
      move(token, token.x[0] + dx * by, token.x[1] + dy * by);
    });
    return { token, element, isQuery, n };
  }

  function draw() {
    const { attention, head } = app;
    const { queries, keys, shared } = attention;
    side = Math.min(area.clientWidth, 440);
    if (!side) return;
    picture.setAttribute("viewBox", `0 0 ${side} ${side}`);
    picture.style.width = picture.style.height = `${side}px`;
    if (known !== queries) {
      known = queries;
      made = [...(shared ? [] : keys.map((token, n) => point(token, false, n))), ...queries.map((token, n) => point(token, true, n))];
      points.replaceChildren(...made.map((m) => m.element));
    }
    const ticks = [-2, -1, 0, 1, 2];
    axes.replaceChildren(...ticks.flatMap((v) => {
      const [x, y] = place([v, v]);
      return [svg("line", { x1: x, x2: x, y1: 0, y2: side, class: v ? "" : "zero" }), svg("line", { y1: y, y2: y, x1: 0, x2: side, class: v ? "" : "zero" }),
        v ? svg("text", { x: x + 3, y: place([0, 0])[1] + 12 }, String(v).replace("-", "−")) : null];
    }).filter(Boolean));
    for (const { token, element } of made) {
      const [x, y] = place(token.x);
      element.setAttribute("transform", `translate(${x} ${y})`);
      element.lastChild.setAttribute("text-anchor", x > side - 70 ? "end" : "start");
      element.lastChild.setAttribute("x", x > side - 70 ? -10 : 10);
      element.setAttribute("aria-label", say("pointLabel", { name: token.name, x: token.x[0], y: token.x[1] }));
    }
    mark();
  }

  function mark() {
    if (!side) return;
    const { attention, head } = app;
    const { i, j } = marked();
    const share = shareOf();
    const from = place(attention.queries[i].x);
    const sum = [0, 0];
    lines.replaceChildren(...attention.ranked(head, i).reverse().map((key) => {
      const weight = attention.at(head, i, key), to = place(attention.keys[key].x);
      attention.keys[key].x.forEach((x, c) => (sum[c] += weight * x));
      const size = Math.min(share(weight), 1);
      return weight === 0 ? null : svg("line", {
        x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke: stroke(size), "stroke-width": 0.6 + 6 * size, class: key === j ? "pair" : "on",
      });
    }).filter(Boolean));
    blend.setAttribute("transform", `translate(${place(sum).join(" ")})`);
    for (const { element, isQuery, n } of made) {
      const query = isQuery && n === i, key = n === j && (attention.shared || !isQuery);
      element.classList.toggle("query", query);
      element.classList.toggle("key", key && !query);
    }
  }

  whenResized(area, draw);
  return { element: card("plane", "plane", "planeHint", area), draw, mark };
}
