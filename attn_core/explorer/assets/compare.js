// GAT against GATv2 (Brody et al., 2022): does the ranking of the keys depend on the query?

import { app, chooseQuery, hover, marked } from "./app.js";
import { cut, html, svg } from "./dom.js";
import { say } from "./i18n.js";
import { parameters, rowOf } from "./model.js";
import { card, whenResized } from "./parts.js";

const SAME = 1e-9; // scores nearer than this rank alike

/** Rows of scores that order the keys differently. */
export function rankings(rows) {
  const disagree = (a, b) => a.some((x, j) => a.some((y, k) => x > y + SAME && b[j] < b[k] - SAME));
  return rows.filter((row, n) => rows.slice(0, n).every((earlier) => disagree(row, earlier))).length;
}

export function compareView(recompute) {
  const panels = ["gat", "gatv2"].map((score) => {
    const picture = svg("svg", { role: "img", id: `compare-${score}` });
    const facts = html("dl", { class: "facts" });
    const panel = html("div", { class: "panel" }, html("h3", {}, say(score)), picture, facts);
    return { score, picture, facts, panel, lines: [] };
  });
  const slider = html("input", { type: "range", id: "direction", min: "-180", max: "180", step: "1", oninput: () => {
    const own = parameters(app.state, "gat", shownHead());
    const length = Math.hypot(...own.b), angle = (Number(slider.value) * Math.PI) / 180;
    own.b = [length * Math.cos(angle), length * Math.sin(angle)].map((x) => Math.round(x * 1000) / 1000);
    recompute();
  } });
  const degrees = html("output", { for: "direction" });
  const shownHead = () => (app.head === "mean" ? 0 : app.head);

  function draw() {
    const { state } = app;
    const { queries, keys } = state;
    const all = queries.map((_, i) => i);
    const rows = panels.map(({ score }) => all.map((i) => rowOf(state, shownHead(), i, score)));
    const byGat = keys.map((_, j) => j).sort((a, b) => rows[0][0].scores[b] - rows[0][0].scores[a]);
    const own = parameters(state, "gat", shownHead());
    slider.value = Math.round((Math.atan2(own.b[1], own.b[0]) * 180) / Math.PI);
    degrees.textContent = `${slider.value}°`.replace("-", "−");
    for (const [n, part] of panels.entries()) {
      const width = part.panel.clientWidth, height = 190, bottom = 24, left = 30;
      if (!width) continue;
      const x = (place) => left + ((place + 0.5) * (width - left)) / keys.length;
      const y = (weight) => 8 + (1 - weight) * (height - bottom - 8);
      part.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
      part.picture.style.height = `${height}px`;
      const found = all.filter((i) => rows[n][i].weights.every((w, j) => j === i || w < rows[n][i].weights[i])).length;
      const ranks = rankings(rows[n].map((row) => row.scores));
      part.lines = all.map((i) => {
        const line = svg("path", { fill: "none", d: byGat.map((j, place) => `${place ? "L" : "M"}${x(place)} ${y(rows[n][i].weights[j])}`).join("") });
        line.addEventListener("pointerenter", (e) => e.pointerType === "touch" || hover({ i, j: null }));
        line.addEventListener("click", () => chooseQuery(i));
        return line;
      });
      part.picture.addEventListener("pointerleave", () => hover(null));
      part.picture.replaceChildren(
        ...[0, 0.5, 1].flatMap((w) => [svg("line", { class: "rule", x1: left, x2: width, y1: y(w), y2: y(w) }), svg("text", { x: left - 6, y: y(w), "text-anchor": "end", "dominant-baseline": "central" }, String(w))]),
        ...part.lines, ...byGat.map((j, place) => svg("text", { x: x(place), y: height - 6, "text-anchor": "middle" }, cut(keys[j].name, 6))));
      part.picture.setAttribute("aria-label", `${say(part.score)}: ${say("rankings")} ${ranks}; ${say("found")} ${say("ofQueries", { n: found, total: queries.length })}`);
      part.facts.replaceChildren(html("dt", {}, say("rankings")), html("dd", { id: `rankings-${part.score}` }, String(ranks)),
        html("dt", {}, say("found")), html("dd", { id: `found-${part.score}` }, say("ofQueries", { n: found, total: queries.length })));
    }
    mark();
  }

  function mark() {
    const { i } = marked();
    for (const { lines } of panels) lines.forEach((line, n) => line.setAttribute("class", n === i ? "line on" : "line"));
  }

  const body = html("div", { class: "panels" }, panels.map((p) => p.panel));
  whenResized(body, draw);
  return {
    element: card("compare", "compare", "compareHint", body,
      html("p", { class: "field wide" }, html("label", { for: "direction" }, say("direction"), " ", degrees), slider)),
    draw, mark, chose: mark,
  };
}
