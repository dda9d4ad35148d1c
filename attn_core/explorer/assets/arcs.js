// The weights as arcs: between the words of one column, or from the keys to the queries of two.

import { app, byStrength, choose, chooseQuery, hover, marked, shareOf, walk } from "./app.js";
import { stroke } from "./colours.js";
import { cut, svg, widest } from "./dom.js";
import { card, stage, whenResized } from "./parts.js";

const PITCH = 38, HIGHEST = 620, LONGEST = 15;
const MOST = 1500; // arcs; the strongest of a large graph
const FAINTEST = 0.02; // of the largest weight: what would hardly be seen

export function arcsView() {
  const picture = svg("svg", { "aria-hidden": "true" });
  const area = stage("arcs", (event) => walk(event, byStrength), picture);
  let drawn = [], texts = [];

  function draw() {
    if (!area.clientWidth) return;
    const { attention, head } = app;
    const { queries, keys, shared } = attention;
    const width = area.clientWidth;
    const longer = Math.max(queries.length, keys.length);
    const pitch = Math.min(PITCH, Math.max(HIGHEST / longer, 3));
    const height = pitch * longer + 8;
    const every = Math.max(1, Math.ceil(13 / pitch));
    const middle = (tokens, n) => 4 + ((n + 0.5) * (height - 8)) / tokens.length;
    const wide = (tokens) => widest(tokens.map((token) => cut(token.name, LONGEST))) + 14;
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.style.height = `${height}px`;
    const share = shareOf();
    const most = attention.largest(head);
    let pairs = [];
    for (let i = 0; i < queries.length; i++)
      for (let j = 0; j < keys.length; j++) {
        if (!attention.has(i, j)) continue;
        const weight = attention.at(head, i, j);
        if (weight > 0 && (weight >= FAINTEST * most || i === app.chosen.i)) pairs.push({ i, j, weight });
      }
    pairs.sort((a, b) => a.weight - b.weight);
    pairs = pairs.slice(-MOST);

    let path, at;
    if (shared) {
      const half = wide(keys) / 2, room = width / 2 - half - 4;
      at = { queries: [width / 2, "middle"], keys: [width / 2, "middle"] };
      path = ({ i, j }) => {
        const [from, to] = [middle(queries, i), middle(keys, j)];
        if (i === j) {
          const r = Math.min(pitch * 0.3, 7);
          return `M${width / 2 + half} ${from - r / 2}a${r} ${r * 0.8} 0 1 1 0 ${r}`;
        }
        const side = j < i ? -1 : 1;
        const reach = room * (0.12 + 0.88 * (Math.abs(i - j) / Math.max(longer - 1, 1)) ** 0.8);
        const [x, bend] = [width / 2 + side * half, width / 2 + side * (half + reach * 1.25)];
        const end = Math.min(Math.max(bend, 2 - room * 0.25), width - 2 + room * 0.25);
        return `M${x} ${from}C${end} ${from},${end} ${to},${x} ${to}`;
      };
    } else {
      const [left, right] = [Math.min(wide(keys), width * 0.36), width - Math.min(wide(queries), width * 0.36)];
      at = { keys: [left - 10, "end"], queries: [right + 10, "start"] };
      path = ({ i, j }) => {
        const [from, to] = [middle(keys, j), middle(queries, i)];
        return `M${left} ${from}C${(left + right) / 2} ${from},${(left + right) / 2} ${to},${right} ${to}`;
      };
    }
    drawn = pairs.map((pair) => {
      const size = share(pair.weight);
      const element = svg("path", {
        d: path(pair), fill: "none", stroke: stroke(size), "stroke-width": 0.6 + (shared && pair.i === pair.j ? 2.4 : Math.min(pitch * 0.42, 8)) * Math.min(size, 1),
      });
      element.addEventListener("pointerenter", (e) => e.pointerType === "touch" || hover({ i: pair.i, j: pair.j }));
      element.addEventListener("click", () => choose(pair.i, pair.j));
      return { ...pair, element };
    });
    const words = (tokens, side, [x, anchor]) => tokens.map((token, n) => {
      if (n % every) return null;
      const text = svg("text", { x, y: middle(tokens, n), "text-anchor": anchor, "dominant-baseline": "central" }, cut(token.name, LONGEST));
      text.addEventListener("pointerenter", (e) => e.pointerType === "touch" || side === "keys" && !shared || hover({ i: n, j: null }));
      text.addEventListener("click", () => side === "keys" && !shared ? choose(app.chosen.i, n) : chooseQuery(n));
      texts.push({ n, side, text });
      return text;
    }).filter(Boolean);
    texts = [];
    const written = shared ? words(queries, "both", at.queries) : [...words(keys, "keys", at.keys), ...words(queries, "queries", at.queries)];
    picture.replaceChildren(...drawn.map((d) => d.element), ...written);
    mark();
  }

  function mark() {
    const { i, j } = marked();
    for (const one of drawn) {
      one.element.setAttribute("class", one.i === i ? (one.j === j ? "pair" : "on") : "off");
    }
    for (const { n, side, text } of texts) {
      const isQuery = side !== "keys" && n === i, isKey = side !== "queries" && n === j;
      text.setAttribute("class", isQuery ? "query" : isKey ? "key" : "");
    }
  }

  picture.addEventListener("pointerleave", () => hover(null));
  whenResized(area, draw);
  let row = -1;
  return {
    element: card("arcs", "arcs", app.attention.shared ? "arcsHint" : "arcsHintCross", area),
    draw() {
      row = app.chosen.i;
      draw();
    },
    mark,
    chose() {
      if (row !== app.chosen.i) this.draw(); // whose faint arcs are drawn too
    },
  };
}
