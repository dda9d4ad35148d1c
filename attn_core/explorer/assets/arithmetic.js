// How the chosen weight comes about, number by number.

import { app, choose, nameOf, redraw } from "./app.js";
import { colour, inkOn } from "./colours.js";
import { cut, html } from "./dom.js";
import { say, show } from "./i18n.js";
import { computed, rowOf, scored } from "./model.js";
import { card, exchange } from "./parts.js";

/** What is subtracted: −(−1), not −−1. */
const less = (x) => (x < 0 ? `− (${show(x)})` : `− ${show(x)}`);
const vector = (x) => `[${x.map(show).join(", ")}]`;
const formula = (...parts) => html("p", { class: "formula" }, ...parts);
const strong = (text) => html("b", {}, text);

/** A table of numbers: the first row names the columns, `last` is the sum below. */
function sums(caption, names, rows, last = null, chosen = -1) {
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    html("table", { class: "sums" },
      html("caption", { class: "unseen" }, caption),
      html("thead", {}, html("tr", {}, names.map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, rows.map((row, n) => html("tr", { class: n === chosen ? "chosen" : null },
        row.map((x, c) => (c ? html("td", {}, typeof x === "number" ? show(x) : x) : html("th", { scope: "row" }, x)))))),
      last ? html("tfoot", {}, html("tr", {}, last.map((x, c) => (c ? html("td", {}, typeof x === "number" ? show(x) : x) : html("th", { scope: "row" }, x))))) : null));
}

const block = (title, ...body) => html("div", { class: "block" }, html("h3", {}, title), ...body);

// --- The score -----------------------------------------------------------------------------------

const numbered = (columns) => columns[0].map((_, n) => [String(n + 1), ...columns.map((column) => column[n])]);
const padding = (count) => Array.from({ length: count }, () => "");

const SHOWN = {
  dot: ({ q, k, terms, value }) => [
    formula("s = q·k = Σ qₙ kₙ"),
    sums(say("scoreOfPair"), ["n", "qₙ", "kₙ", "qₙ kₙ"], numbered([q, k, terms]), [say("sum"), ...padding(2), value]),
  ],
  scaled_dot: ({ q, k, terms, product, value }) => [
    formula("s = q·k / √d"),
    sums(say("scoreOfPair"), ["n", "qₙ", "kₙ", "qₙ kₙ"], numbered([q, k, terms]), [say("sum"), ...padding(2), product]),
    formula(`s = ${show(product)} / √${q.length} = `, strong(show(value))),
  ],
  cosine: ({ q, k, terms, product, lengths, value }) => [
    formula("s = q·k / (‖q‖ ‖k‖)"),
    sums(say("scoreOfPair"), ["n", "qₙ", "kₙ", "qₙ kₙ"], numbered([q, k, terms]), [say("sum"), ...padding(2), product]),
    formula(`s = ${show(product)} / (${show(lengths[0])} · ${show(lengths[1])}) = `, strong(show(value))),
  ],
  general: ({ q, k, left, terms, value }) => [
    formula("s = qᵀ W k"),
    formula(`q = ${vector(q)}, Wᵀq = ${vector(left)}`),
    sums(say("scoreOfPair"), ["n", "(Wᵀq)ₙ", "kₙ", "(Wᵀq)ₙ kₙ"], numbered([left, k, terms]), [say("sum"), ...padding(2), value]),
  ],
  additive: ({ q, k, own, hidden, active, terms, value }) => [
    formula("s = vᵀ tanh(q + k)"),
    sums(say("scoreOfPair"), ["n", "qₙ", "kₙ", "qₙ + kₙ", "tanh", "vₙ", "vₙ tanh"], numbered([q, k, hidden, active, own.v, terms]), [say("sum"), ...padding(5), value]),
  ],
  gatv2: ({ q, k, own, hidden, active, terms, value }) => [
    formula("s = aᵀ LeakyReLU(q + k)"),
    sums(say("scoreOfPair"), ["n", "qₙ", "kₙ", "qₙ + kₙ", "LeakyReLU", "aₙ", "aₙ LeakyReLU"], numbered([q, k, hidden, active, own.v, terms]), [say("sum"), ...padding(5), value]),
  ],
  gat: ({ q, k, own, ofQuery, ofKey, hidden, value }) => [
    formula("s = LeakyReLU(aᵀq + bᵀk)"),
    sums(say("scoreOfPair"), ["n", "aₙ", "qₙ", "aₙ qₙ", "bₙ", "kₙ", "bₙ kₙ"],
      numbered([own.a, q, q.map((x, n) => x * own.a[n]), own.b, k, k.map((x, n) => x * own.b[n])]),
      [say("sum"), ...padding(2), ofQuery, ...padding(2), ofKey]),
    formula(`${show(ofQuery)} + ${show(ofKey)} = ${show(hidden)}`),
    formula(`s = LeakyReLU(${show(hidden)}) = ${hidden > 0 ? "" : `${show(own.slope)} · ${show(hidden)} = `}`, strong(show(value))),
  ],
};

/** From features to the query and the key that the score takes. */
function projection(state, own, q, k, x, y) {
  if (state.score === "general") return null;
  const [left, right] = own.W ? ["W", "W"] : ["q", "k"].map((side) => ["W", html("sub", {}, side)]);
  return block(say("toFeatures"),
    formula("q = ", left, ` x${own.bias ? " + b" : ""}, x = ${vector(x)}`),
    formula("q = ", strong(vector(q))),
    formula("k = ", right, ` y, y = ${vector(y)}`),
    formula("k = ", strong(vector(k))));
}

// --- The row -------------------------------------------------------------------------------------

function rowTable(state, row, j, columns, footer) {
  const keys = state.keys.map((_, key) => key).filter((key) => row.scores[key] !== -Infinity);
  const cooled = state.temperature !== 1;
  const all = [["s", row.scores], ...(cooled ? [["s/τ", row.cooled]] : []), ...columns, ["α", row.weights]];
  const rows = keys.map((key) => [nameOf(state.keys, key), ...all.map(([, column]) => column[key])]);
  const foot = footer ? [say("sum"), ...padding(all.length - footer.length), ...footer] : null;
  const table = sums(say("rowTitle"), [say("key"), ...all.map(([name]) => name)], rows, foot, keys.indexOf(j));
  for (const [n, tr] of table.querySelectorAll("tbody tr").entries()) {
    tr.addEventListener("click", () => choose(app.chosen.i, keys[n]));
    const share = row.weights[keys[n]];
    tr.lastChild.style.background = colour(share);
    tr.lastChild.style.color = inkOn(share);
  }
  return table;
}

const total = (row) => row.weights.reduce((a, b) => a + b, 0);
const larger = (text) => `max(${text}, 0)`;

const ROWS = {
  softmax: (state, row, j) => [
    formula("α = exp(s − max) / Σ exp(s − max)"),
    formula(`${say("largestSubtracted")}: ${show(row.max)}`),
    rowTable(state, row, j, [["s − max", row.shifted], ["exp", row.exponentials]], [row.total, total(row)]),
    formula(`${say("quotient")}: α = ${show(row.exponentials[j])} / ${show(row.total)} = `, strong(show(row.weights[j]))),
  ],
  sparsemax: (state, row, j) => [
    formula("α = max(z − τ*, 0), z = s − max"),
    rowTable(state, row, j, [["z", row.shifted]], [total(row)]),
    html("h4", {}, say("thresholdTitle")),
    sums(say("thresholdTitle"), ["n", "zₙ", say("running"), "1 + n zₙ", say("inside")],
      row.steps.map((step, n) => [String(n + 1), step.z, step.running, step.left, step.inside ? say("yes") : say("no")])),
    formula(`τ* = (${show(row.total)} − 1) / ${row.size} = ${show(row.tau)}`),
    formula(`α = ${larger(`${show(row.shifted[j])} ${less(row.tau)}`)} = `, strong(show(row.weights[j]))),
  ],
  entmax15: (state, row, j) => [
    formula("α = max(z − τ*, 0)², z = (s − max) / 2"),
    rowTable(state, row, j, [["z", row.shifted]], [total(row)]),
    html("h4", {}, say("thresholdTitle")),
    formula(`τ* = m − √((1 − Σ(z − m)²) / n) = ${show(row.mean)} − √((1 − ${show(row.around)}) / ${row.size}) = ${show(row.tau)}`),
    formula(`α = ${larger(`${show(row.shifted[j])} ${less(row.tau)}`)}² = `, strong(show(row.weights[j]))),
  ],
  entmax: (state, row, j) => {
    if (row.lambda === undefined) return ROWS[{ 1: "softmax", 1.5: "entmax15", 2: "sparsemax" }[state.alpha]](state, row, j);
    const power = +(state.alpha - 1).toFixed(6);
    return [
      formula("w = max(1 + (α − 1)(z − λ), 0)^(1/(α − 1)), z = s − max"),
      rowTable(state, row, j, [["z", row.shifted]], [total(row)]),
      html("h4", {}, say("thresholdTitle")),
      formula(`λ = ${show(row.lambda)}: Σ w = ${show(total(row))}`),
      formula(`w = ${larger(`1 + ${power} · (${show(row.shifted[j])} ${less(row.lambda)})`)}^(1/${power}) = `, strong(show(row.weights[j]))),
    ];
  },
  hard: (state, row, j) => [formula(say("largestWins")), rowTable(state, row, j, [], [total(row)])],
};

// --- The two kinds of page -----------------------------------------------------------------------

function outcome(state, row) {
  const keys = state.keys.map((_, j) => j).filter((j) => row.weights[j] > 0);
  const parts = keys.map((j) => [nameOf(state.keys, j), row.weights[j], ...state.keys[j].x, ...state.keys[j].x.map((x) => row.weights[j] * x)]);
  const out = [0, 1].map((c) => keys.reduce((t, j) => t + row.weights[j] * state.keys[j].x[c], 0));
  return block(say("result"), formula("o = Σ α v"), html("p", { class: "hint" }, say("output")),
    sums(say("result"), [say("key"), "α", "v₁", "v₂", "α v₁", "α v₂"], parts, [say("sum"), ...padding(3), ...out]));
}

function ofMean(i, j) {
  const { attention } = app;
  const each = attention.heads.map((_, h) => attention.at(h, i, j));
  return block(say("meanOfHeads"),
    formula(`(${each.map(show).join(" + ")}) / ${each.length} = `, strong(show(attention.at("mean", i, j)))),
    html("p", { class: "buttons" }, each.map((_, h) => html("button", {
      type: "button", id: `show-head-${h}`, onclick: () => {
        app.head = h;
        redraw();
      },
    }, say("showHead", { head: say("headN", { n: h }) })))));
}

function ofComputed(i, j) {
  const { state, head } = app;
  const pair = `${i},${j}`, masked = state.hiddenPairs.has(pair);
  const masking = html("p", { class: "buttons" }, html("button", {
    type: "button", id: "mask-pair", "aria-pressed": String(masked), onclick: () => {
      if (!state.hiddenPairs.delete(pair)) state.hiddenPairs.add(pair);
      app.attention = computed(state);
      redraw();
    },
  }, say(masked ? "showPair" : "hidePair")));
  if (!app.attention.has(i, j)) return [formula(say("noPair")), masking];
  if (head === "mean" && state.headCount > 1) return [ofMean(i, j), masking];
  const one = head === "mean" ? 0 : head;
  const made = scored(state, state.score, one, i, j);
  const row = rowOf(state, one, i);
  return [
    html("div", { class: "columns" },
      html("div", {},
        projection(state, made.own, made.q, made.k, state.queries[i].x, state.keys[j].x),
        block(say("scoreOfPair"), ...SHOWN[state.score](made),
          state.temperature === 1 ? null : formula(`s/τ = ${show(made.value)} / ${state.temperature} = `, strong(show(row.cooled[j])))),
        outcome(state, row)),
      block(say("rowTitle"), ...ROWS[state.normalizer](state, row, j))),
    masking,
  ];
}

function ofGiven(i, j) {
  const { attention, head } = app;
  if (!attention.has(i, j)) return [formula(say("noPair"))];
  const ranked = attention.ranked(head, i);
  const row = ranked.map((key) => attention.at(head, i, key));
  const weight = attention.at(head, i, j);
  const shown = ranked.slice(0, 40);
  const table = sums(say("weight"), [say("key"), "α"], shown.map((key) => [nameOf(attention.keys, key), attention.at(head, i, key)]),
    [say("rowSum"), row.reduce((a, b) => a + b, 0)], shown.indexOf(j));
  for (const [n, tr] of table.querySelectorAll("tbody tr").entries()) tr.addEventListener("click", () => choose(i, shown[n]));
  return [html("div", { class: "columns" },
    html("div", {},
      block(say("weight"), formula("α = ", strong(show(weight))), formula(`${say("rank")}: ${say("rankOf", { n: ranked.indexOf(j) + 1, total: ranked.length })}`)),
      attention.heads.length > 1 ? head === "mean" ? ofMean(i, j)
        : block(say("heads"), sums(say("heads"), [say("head"), "α"], attention.heads.map((_, h) => [String(h), attention.at(h, i, j)]), [say("mean"), attention.at("mean", i, j)], head)) : null,
      weight > 0 && j !== ranked[0] ? block(say("logRatio"), formula(`ln(${show(weight)} / ${show(row[0])}) = `, strong(show(Math.log(weight / row[0])))), html("p", { class: "hint" }, say("logRatioHint"))) : null),
    block(say("rowOf", { query: cut(nameOf(attention.queries, i), 40) }), table))];
}

export function arithmeticView() {
  const body = html("div", { id: "arithmetic-body" });
  function draw() {
    const { i, j } = app.chosen;
    const { queries, keys } = app.attention;
    const title = html("p", { class: "pair" }, say("arithmeticOf", { query: cut(nameOf(queries, i), 40), key: cut(nameOf(keys, j), 40) }));
    exchange(body, title, ...(app.state ? ofComputed(i, j) : ofGiven(i, j)));
  }
  return { element: card("arithmetic", "arithmetic", null, body), draw, chose: draw };
}
