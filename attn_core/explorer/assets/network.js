// The weights as a graph: an arrow from each key to the query that attends to it.

import { app, byStrength, choose, chooseQuery, hover, marked, shareOf, walk } from "./app.js";
import { stroke } from "./colours.js";
import { cut, html, svg } from "./dom.js";
import { card, stage, whenResized } from "./parts.js";

const MOST = 3000; // arrows
const FAINTEST = 0.01;

const round = (count, radius, from = -Math.PI / 2) =>
  Array.from({ length: count }, (_, n) => {
    const angle = from + (2 * Math.PI * n) / count;
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  });

/** Springs along the edges, repulsion between all (Fruchterman and Reingold, 1991); none overlap. */
export function forces(count, links, rounds = count > 150 ? 120 : 300) {
  const places = Array.from({ length: count }, (_, n) => {
    const [r, angle] = [Math.sqrt((n + 0.5) / count), n * 2.399963];
    return [r * Math.cos(angle), r * Math.sin(angle)];
  });
  const length = Math.sqrt(3 / count);
  for (let step = 0; step < rounds; step++) {
    const heat = 0.12 * (1 - step / rounds);
    const push = places.map(() => [0, 0]);
    const pull = (a, b, strength) => {
      const [x, y] = [places[a][0] - places[b][0], places[a][1] - places[b][1]];
      const far = Math.hypot(x, y) || 1e-6;
      const force = strength(far) / far;
      push[a][0] += x * force; push[a][1] += y * force;
      push[b][0] -= x * force; push[b][1] -= y * force;
    };
    for (let a = 0; a < count; a++) for (let b = 0; b < a; b++) pull(a, b, (d) => (length * length) / d);
    for (const [a, b] of links) pull(a, b, (d) => -(d * d) / length);
    for (let n = 0; n < count; n++) {
      const [x, y] = [push[n][0] - 0.2 * places[n][0], push[n][1] - 0.2 * places[n][1]]; // towards the middle
      const far = Math.hypot(x, y) || 1;
      places[n] = [places[n][0] + (x / far) * Math.min(far, heat), places[n][1] + (y / far) * Math.min(far, heat)];
    }
  }
  const apart = 0.6 * length;
  for (let step = 0; step < 60; step++) {
    for (let a = 0; a < count; a++) {
      for (let b = 0; b < a; b++) {
        const [x, y] = [places[a][0] - places[b][0], places[a][1] - places[b][1]];
        const far = Math.hypot(x, y) || 1e-6, by = Math.max(apart - far, 0) / (4 * far);
        places[a] = [places[a][0] + x * by, places[a][1] + y * by];
        places[b] = [places[b][0] - x * by, places[b][1] - y * by];
      }
    }
  }
  return places;
}

/** Where the nodes stand, the queries after the keys where they are others. */
function placesOf(attention) {
  const { queries, keys, shared } = attention;
  if (!shared) return [...round(keys.length, 1), ...round(queries.length, 0.5)];
  const given = app.state?.places ?? app.data.positions;
  if (given) return given;
  if (!app.data.graph) return round(queries.length, 1);
  const links = [];
  for (let i = 0; i < queries.length; i++)
    for (let j = 0; j < i; j++) if (attention.has(i, j) || attention.has(j, i)) links.push([i, j]);
  return forces(queries.length, links);
}

/** The middle and the extent of the places along an axis. */
function extent(places, axis) {
  const all = places.map((place) => place[axis]);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  return [(low + high) / 2, high - low || 1e-9];
}

/** In pixels, within a margin; both axes have the same scale. */
function fitted(places, width, height, margin) {
  const [[x0, across], [y0, along]] = [extent(places, 0), extent(places, 1)];
  const scale = Math.min((width - 2 * margin[0]) / across, (height - 2 * margin[1]) / along);
  return places.map(([x, y]) => [
    width / 2 + (x - x0) * scale,
    height / 2 + (y - y0) * scale,
  ]);
}

export function networkView() {
  const picture = svg("svg", { "aria-hidden": "true" });
  const area = stage("network", (event) => walk(event, byStrength), picture);
  let drawn = [], nodes = [], known = null, places = null;

  function draw() {
    if (!area.clientWidth) return;
    const { attention, head } = app;
    const { queries, keys, shared } = attention;
    const tokens = shared ? keys : [...keys, ...queries];
    const nodeOfQuery = (i) => (shared ? i : keys.length + i);
    if (known !== attention.keys) [known, places] = [attention.keys, placesOf(attention)];
    const [across, along] = [0, 1].map((axis) => extent(places, axis)[1]);
    const width = area.clientWidth, height = Math.max(220, Math.min((width * along) / across + 70, 440));
    const many = tokens.length > 60;
    const radius = many ? Math.max(3.5, 90 / Math.sqrt(tokens.length)) / 1.6 : tokens.length > 16 ? 7 : 10;
    const at = fitted(places, width, height, many ? [14, 14] : [52, 30]);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.style.height = `${height}px`;
    const share = shareOf(), most = attention.largest(head);
    let pairs = [];
    for (let i = 0; i < queries.length; i++)
      for (let j = 0; j < keys.length; j++) {
        if (!attention.has(i, j)) continue;
        const weight = attention.at(head, i, j);
        if (weight > 0 && (weight >= FAINTEST * most || i === app.chosen.i)) pairs.push({ i, j, weight });
      }
    pairs = pairs.sort((a, b) => a.weight - b.weight).slice(-MOST);
    drawn = pairs.map((pair) => {
      const size = Math.min(share(pair.weight), 1), colour = stroke(size);
      const [x2, y2] = at[nodeOfQuery(pair.i)], [x1, y1] = at[pair.j];
      let element;
      if (nodeOfQuery(pair.i) === pair.j) {
        element = svg("circle", { cx: x1, cy: y1, r: radius + 1.5 + 1.5 * size, fill: "none", stroke: colour, "stroke-width": 1 + 4 * size });
      } else {
        const [dx, dy] = [x2 - x1, y2 - y1], far = Math.hypot(dx, dy) || 1;
        const thick = 0.6 + (many ? 2.5 : 4) * size, tip = 4 + 1.6 * thick;
        const [cx, cy] = [(x1 + x2) / 2 - dy * 0.12, (y1 + y2) / 2 + dx * 0.12]; // bent: the way back is another
        const [ex, ey] = [x2 - cx, y2 - cy], end = Math.hypot(ex, ey) || 1;
        const [ux, uy] = [ex / end, ey / end];
        const stop = radius + 2 + tip;
        const [bx, by] = [x2 - ux * stop, y2 - uy * stop], [px, py] = [x2 - ux * (radius + 2), y2 - uy * (radius + 2)];
        element = svg("g", {},
          svg("path", { d: `M${x1} ${y1}Q${cx} ${cy} ${bx} ${by}`, fill: "none", stroke: colour, "stroke-width": thick }),
          far > stop ? svg("path", { d: `M${px} ${py}L${bx - uy * tip * 0.45} ${by + ux * tip * 0.45}L${bx + uy * tip * 0.45} ${by - ux * tip * 0.45}Z`, fill: colour }) : null);
      }
      element.addEventListener("pointerenter", (e) => e.pointerType === "touch" || hover({ i: pair.i, j: pair.j }));
      element.addEventListener("click", () => choose(pair.i, pair.j));
      return { ...pair, element };
    });
    nodes = tokens.map((token, n) => {
      const [x, y] = at[n];
      const isQuery = shared || n >= keys.length, number = shared ? n : n % keys.length;
      const i = shared ? n : n - keys.length;
      const colour = token.class >= 0 ? app.data.colours[token.class % app.data.colours.length] : null;
      const shape = shared || !isQuery ? svg("circle", { cx: x, cy: y, r: radius })
        : svg("rect", { x: x - radius * 0.8, y: y - radius * 0.8, width: radius * 1.6, height: radius * 1.6, transform: `rotate(45 ${x} ${y})` });
      if (colour) shape.setAttribute("fill", colour);
      const below = y + radius + 12 < height - 4;
      const label = svg("text", { x, y: below ? y + radius + 13 : y - radius - 7, "text-anchor": "middle" }, cut(token.name, many ? 24 : 12));
      const element = svg("g", { class: "node" }, shape, label);
      element.addEventListener("pointerenter", (e) => e.pointerType === "touch" || hover(isQuery ? { i, j: null } : { i: app.chosen.i, j: number }));
      element.addEventListener("click", () => (isQuery ? chooseQuery(i) : choose(app.chosen.i, number)));
      return { element, i: isQuery ? i : null, j: shared || !isQuery ? number : null };
    });
    area.classList.toggle("many", many);
    picture.replaceChildren(...drawn.map((d) => d.element), ...nodes.map((n) => n.element));
    mark();
  }

  function mark() {
    const { i, j } = marked();
    const near = new Set();
    for (const one of drawn) {
      const own = one.i === i;
      if (own) near.add(one.j);
      one.element.setAttribute("class", own ? (one.j === j ? "pair" : "on") : "off");
    }
    for (const node of nodes) {
      const isQuery = node.i === i, isKey = node.j !== null && node.j === j;
      node.element.setAttribute("class", `node ${isQuery ? "query" : isKey ? "key" : node.j !== null && near.has(node.j) ? "near" : ""}`);
    }
  }

  picture.addEventListener("pointerleave", () => hover(null));
  whenResized(area, draw);
  let row = -1;
  return {
    element: card("network", "network", "networkHint", area, legend()),
    draw() {
      row = app.chosen.i;
      draw();
    },
    mark,
    chose() {
      if (row !== app.chosen.i) this.draw();
    },
  };
}

/** The names of the classes, beside their colours. */
function legend() {
  const { classNames, colours } = app.data;
  if (!classNames) return null;
  return html("ul", { class: "legend" }, classNames.map((name, n) =>
    html("li", {}, html("span", { vars: { background: colours[n % colours.length] } }), name)));
}
