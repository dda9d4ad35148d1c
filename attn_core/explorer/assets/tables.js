// The weights as a table, for whoever sees no picture, and as a program.

import { app, nameOf } from "./app.js";
import { html } from "./dom.js";
import { say, show } from "./i18n.js";
import { isVisible, parameters } from "./model.js";

const LARGEST = 4000; // cells

export function tableView() {
  const body = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": say("table") });
  const details = html("details", { id: "table", class: "card", ontoggle: draw }, html("summary", {}, say("table")), body);

  function draw() {
    if (!details.open) return;
    const { attention, head, chosen } = app;
    const { queries, keys } = attention;
    const large = queries.length * keys.length > LARGEST;
    const rows = large ? [chosen.i] : queries.map((_, i) => i);
    const which = head === "mean" ? say("mean") : say("headN", { n: head });
    body.replaceChildren(large ? html("p", { class: "hint" }, say("tableTooLarge")) : "",
      html("table", {}, html("caption", {}, say("tableOf", { head: which })),
        html("thead", {}, html("tr", {}, html("th", { scope: "col" }, `${say("query")} \\ ${say("key")}`), keys.map((k) => html("th", { scope: "col" }, k.name)))),
        html("tbody", {}, rows.map((i) => html("tr", {}, html("th", { scope: "row" }, nameOf(queries, i)),
          keys.map((_, j) => html("td", {}, attention.has(i, j) ? show(attention.at(head, i, j)) : "–")))))));
  }
  return { element: details, draw, chose: draw };
}

// --- Python --------------------------------------------------------------------------------------

const CLASSES = { dot: "Dot", scaled_dot: "ScaledDot", cosine: "Cosine", general: "General", additive: "Additive", gat: "Separable", gatv2: "Additive" };
const SOFT = { softmax: "Softmax()", sparsemax: "Sparsemax()", entmax15: "Entmax(1.5)", hard: "Hard()" };

/** The state as a program on attn_core that ends with `weights`, `[H, Tq, Tk]`. */
export function program(state) {
  const { score, support, queries, keys, temperature } = state;
  const own = Array.from({ length: state.headCount }, (_, h) => parameters(state, score, h));
  const list = (name) => JSON.stringify(own.map((one) => one[name]));
  const made = state.normalizer === "entmax" ? `Entmax(${state.alpha})` : SOFT[state.normalizer];
  const overEdges = support === "edges";
  const names = [...new Set([CLASSES[score], made.split("(")[0], overEdges ? "Edges" : "Dense", "logits"])].sort();
  const lines = ["import torch", `from attn_core import ${names.join(", ")}`, "",
    "def tensor(numbers):", "    return torch.tensor(numbers, dtype=torch.float64)", ""];
  const add = (...more) => lines.push(...more);
  const points = (tokens) => JSON.stringify(tokens.map((t) => t.x));
  add(`x = tensor(${points(queries)})  # [Tq, 2]`);
  add(queries === keys ? "y = x" : `y = tensor(${points(keys)})  # [Tk, 2]`);
  if (score === "general") {
    add(`query, key = (t[:, None].expand(-1, ${state.headCount}, -1) for t in (x, y))  # [T, H, 2]`, `score = General(tensor(${list("W")}))`);
  } else if (score === "gat") {
    add(`W = tensor(${list("W")})  # [H, D, 2]`);
    add('query, key = (torch.einsum("hdc,tc->thd", W, t) for t in (x, y))  # [T, H, D]');
    add(`score = Separable(tensor(${list("a")}), tensor(${list("b")}), negative_slope=${own[0].slope})`);
  } else {
    add(`W_q, W_k = tensor(${list("W_q")}), tensor(${list("W_k")})  # [H, D, 2]`);
    add(`query = torch.einsum("hdc,tc->thd", W_q, x)${own[0].bias ? ` + tensor(${list("bias")})` : ""}  # [Tq, H, D]`);
    add('key = torch.einsum("hdc,tc->thd", W_k, y)  # [Tk, H, D]');
    const v = `tensor(${list("v")})`;
    const args = { additive: v, gatv2: `${v}, "leaky_relu", ${own[0].slope}` }[score] ?? "";
    add(`score = ${CLASSES[score]}(${args})`);
  }
  const divided = temperature === 1 ? "scores" : `scores / ${temperature}`;
  if (overEdges) {
    const pairs = [];
    queries.forEach((_, i) => keys.forEach((_, j) => isVisible(state, i, j) && pairs.push([j, i])));
    add(`edge_index = torch.tensor(${JSON.stringify([0, 1].map((end) => pairs.map((p) => p[end])))}, dtype=torch.int64)`);
    add(`scores = logits(query, key, score=score, support=Edges(edge_index, len(y), len(x)))  # [E, H]`);
    add(`over_edges = ${made}.segment(${divided}, edge_index[1], num=len(x))`);
    add(`weights = over_edges.new_zeros(${state.headCount}, len(x), len(y))`, "weights[:, edge_index[1], edge_index[0]] = over_edges.T");
  } else {
    const seen = queries.map((_, i) => keys.map((_, j) => (isVisible(state, i, j) ? 1 : 0)));
    add(`visible = torch.tensor(${JSON.stringify(seen)}, dtype=torch.bool)`);
    add("scores = logits(query, key, score=score, support=Dense(visible))  # [H, Tq, Tk]", `weights = ${made}.dense(${divided})`);
  }
  add("print(weights)");
  return `${lines.join("\n")}\n`;
}

export function pythonView() {
  const code = html("code", {});
  const text = html("pre", { id: "program", tabindex: "0" }, code);
  const copy = html("button", { type: "button", id: "copy", onclick: async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      app.live.textContent = copy.textContent = say("copied");
    } catch { // not allowed: chosen, so that the reader can copy it
      getSelection().selectAllChildren(code);
    }
  } }, say("copy"));
  const draw = () => {
    if (!details.open) return;
    copy.textContent = say("copy");
    code.textContent = program(app.state);
  };
  const details = html("details", { id: "python", class: "card", ontoggle: draw }, html("summary", {}, say("python")),
    html("p", { class: "hint" }, say("pythonHint")), html("p", { class: "buttons" }, copy), text);
  return { element: details, draw };
}
