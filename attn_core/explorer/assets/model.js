// What is looked at: weights of heads over (query, key) pairs, read from the page or computed.

import { parametersOf, projected, EXAMPLES } from "./examples.js";
import { NORMALIZERS, SCORES, SUPPORTS } from "./formulas.js";

/** Weights of every head, `[Tq, Tk]` each; which pairs there are is the same for all heads. */
export class Attention {
  constructor({ queries, keys, shared, heads, exists }) {
    Object.assign(this, { queries, keys, shared, heads, exists });
  }

  has(i, j) {
    return this.exists[i * this.keys.length + j] === 1;
  }

  /** The weight of a head, or the mean over heads. */
  at(head, i, j) {
    const place = i * this.keys.length + j;
    if (head !== "mean") return this.heads[head][place];
    return this.heads.reduce((total, weights) => total + weights[place], 0) / this.heads.length;
  }

  row(head, i) {
    return this.keys.map((_, j) => this.at(head, i, j));
  }

  /** The pairs of a query, the strongest first. */
  ranked(head, i) {
    const pairs = this.keys.map((_, j) => j).filter((j) => this.has(i, j));
    const row = this.row(head, i);
    return pairs.sort((a, b) => row[b] - row[a] || a - b);
  }

  largest(head) {
    let largest = 0;
    for (let i = 0; i < this.queries.length; i++)
      for (let j = 0; j < this.keys.length; j++)
        if (this.has(i, j)) largest = Math.max(largest, this.at(head, i, j));
    return largest || 1;
  }
}

// --- From real weights ---------------------------------------------------------------------------

const ARRAYS = { f4: Float32Array, f8: Float64Array, i4: Int32Array };

const numbers = ({ dtype, base64 }) =>
  new ARRAYS[dtype](Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);

/** One layer of the page's data: a matrix for each head, or a number for each edge and head. */
export function attentionOf(data, layer) {
  const { weights, edges, heads: count } = data.layers[layer];
  const queries = data.queries.map((name, n) => ({ name, class: data.classes?.[n] }));
  const keys = data.shared ? queries : data.keys.map((name) => ({ name }));
  const size = queries.length * keys.length;
  const given = numbers(weights);
  const exists = new Uint8Array(size).fill(edges ? 0 : 1);
  const heads = Array.from({ length: count }, () => new Float64Array(size));
  if (edges) {
    const ends = numbers(edges);
    const total = ends.length / 2;
    for (let e = 0; e < total; e++) {
      const place = ends[total + e] * keys.length + ends[e];
      exists[place] = 1;
      for (let h = 0; h < count; h++) heads[h][place] += given[e * count + h]; // parallel edges add up
    }
  } else heads.forEach((head, h) => head.set(given.subarray(h * size, (h + 1) * size)));
  return new Attention({ queries, keys, shared: data.shared, heads, exists });
}

// --- Computed ------------------------------------------------------------------------------------

/** The settings of an example, fresh. */
export function freshState(example, language, text = "") {
  const { tokens, defaults, places } = EXAMPLES[example];
  const { strength, ...chosen } = defaults;
  return {
    example, text, places, strength, ...chosen, ...tokens(language, text),
    alpha: 1.2, temperature: 1, radius: 2, headCount: 1,
    hiddenKeys: new Set(), hiddenPairs: new Set(), parameters: {},
  };
}

export function parameters(state, score, head) {
  const all = (state.parameters[score] ??= []);
  return (all[head] ??= parametersOf(score, head, state.strength));
}

export function isVisible(state, i, j) {
  const sizes = { queries: state.queries.length, keys: state.keys.length, radius: state.radius, edges: state.edges };
  return SUPPORTS[state.support](i, j, sizes) && !state.hiddenKeys.has(j) && !state.hiddenPairs.has(`${i},${j}`);
}

/** The score of one pair, with all that leads to it. */
export function scored(state, score, head, i, j) {
  const own = parameters(state, score, head);
  const [q, k] = projected(score, own, state.queries[i].x, state.keys[j].x);
  return { own, q, k, ...SCORES[score](q, k, own) };
}

/** The row of one query: scores, what the temperature makes of them, and the normaliser's steps. */
export function rowOf(state, head, i, score = state.score) {
  const scores = state.keys.map((_, j) => (isVisible(state, i, j) ? scored(state, score, head, i, j).value : -Infinity));
  const cooled = scores.map((s) => s / state.temperature);
  return { scores, cooled, ...NORMALIZERS[state.normalizer](cooled, { alpha: state.alpha }) };
}

export function computed(state) {
  const { queries, keys } = state;
  const exists = new Uint8Array(queries.length * keys.length);
  queries.forEach((_, i) => keys.forEach((_, j) => (exists[i * keys.length + j] = isVisible(state, i, j) ? 1 : 0)));
  const heads = Array.from({ length: state.headCount }, (_, head) =>
    Float64Array.from(queries.flatMap((_, i) => rowOf(state, head, i).weights)));
  return new Attention({ queries, keys, shared: queries === keys, heads, exists });
}
