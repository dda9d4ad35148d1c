// The formulas, in float64, each with the numbers that its arithmetic shows on the way.
//
// A score takes a query and a key that are already projected. A normaliser takes the scores of one
// row, with -Infinity where there is no pair; such a pair, and each pair of a row without any other,
// gets the weight 0. attn_core says the same in torch, and the tests compare the two.

export const sum = (numbers) => numbers.reduce((total, x) => total + x, 0);
export const times = (matrix, vector) => matrix.map((row) => sum(row.map((w, c) => w * vector[c])));
export const plus = (a, b) => a.map((x, c) => x + b[c]);
const products = (a, b) => a.map((x, c) => x * b[c]);
export const leakyRelu = (x, slope) => (x > 0 ? x : slope * x);

export const SCORES = {
  /** q·k */
  dot(q, k) {
    const terms = products(q, k);
    return { terms, value: sum(terms) };
  },
  /** q·k / √d */
  scaled_dot(q, k) {
    const terms = products(q, k);
    const product = sum(terms);
    return { terms, product, value: product / Math.sqrt(q.length) };
  },
  /** q·k / (‖q‖ ‖k‖) */
  cosine(q, k) {
    const terms = products(q, k);
    const product = sum(terms);
    const lengths = [q, k].map((x) => Math.max(Math.sqrt(sum(products(x, x))), 1e-8));
    return { terms, product, lengths, value: product / (lengths[0] * lengths[1]) };
  },
  /** qᵀ W k */
  general(q, k, { W }) {
    const left = k.map((_, c) => sum(q.map((x, r) => x * W[r][c])));
    const terms = products(left, k);
    return { left, terms, value: sum(terms) };
  },
  /** vᵀ tanh(q + k) */
  additive(q, k, { v }) {
    const hidden = plus(q, k);
    const active = hidden.map(Math.tanh);
    const terms = products(v, active);
    return { hidden, active, terms, value: sum(terms) };
  },
  /** LeakyReLU(aᵀq + bᵀk) */
  gat(q, k, { a, b, slope }) {
    const ofQuery = sum(products(a, q));
    const ofKey = sum(products(b, k));
    const hidden = ofQuery + ofKey;
    return { ofQuery, ofKey, hidden, value: leakyRelu(hidden, slope) };
  },
  /** vᵀ LeakyReLU(q + k) */
  gatv2(q, k, { v, slope }) {
    const hidden = plus(q, k);
    const active = hidden.map((x) => leakyRelu(x, slope));
    const terms = products(v, active);
    return { hidden, active, terms, value: sum(terms) };
  },
};

const EMPTY = -Infinity;
const exists = (s) => s !== EMPTY;

/** The largest score of a row: 0 where there is none, NaN where it is NaN or +Infinity. */
function largestOf(scores) {
  const largest = scores.reduce((a, b) => (Number.isNaN(a) || a > b ? a : b), EMPTY);
  return largest === EMPTY ? 0 : largest === Infinity ? NaN : largest;
}

const spoilt = (scores) => scores.map((s) => (exists(s) ? NaN : 0));

/** exp(s - max) / Σ exp(s - max) */
export function softmax(scores) {
  const max = largestOf(scores);
  if (Number.isNaN(max)) return { max, weights: spoilt(scores) };
  const shifted = scores.map((s) => s - max);
  const exponentials = shifted.map((z) => (exists(z) ? Math.exp(z) : 0));
  const total = sum(exponentials);
  return { max, shifted, exponentials, total, weights: exponentials.map((e) => e / (total || 1)) };
}

/** max(s - τ, 0), with τ such that the row sums to 1 */
export function sparsemax(scores) {
  const max = largestOf(scores);
  if (Number.isNaN(max)) return { max, weights: spoilt(scores) };
  const shifted = scores.map((s) => s - max);
  const sorted = shifted.filter(exists).sort((a, b) => b - a);
  let size = 0, total = 0, running = 0;
  const steps = sorted.map((z, n) => {
    running += z;
    const inside = 1 + (n + 1) * z > running;
    if (inside) [size, total] = [n + 1, running];
    return { z, running, left: 1 + (n + 1) * z, inside };
  });
  const tau = size ? (total - 1) / size : 0;
  const weights = shifted.map((z) => (exists(z) ? Math.max(z - tau, 0) : 0));
  return { max, shifted, steps, size, total, tau, weights };
}

/** max(s/2 - τ, 0)², with τ such that the row sums to 1 */
export function entmax15(scores) {
  const max = largestOf(scores);
  if (Number.isNaN(max)) return { max, weights: spoilt(scores) };
  const shifted = scores.map((s) => (s - max) / 2);
  const sorted = shifted.filter(exists).sort((a, b) => b - a);
  let size = 0, total = 0, squares = 0;
  sorted.forEach((z, n) => {
    total += z;
    squares += z * z;
    const spread = (1 - squares + (total * total) / (n + 1)) / (n + 1);
    if (total / (n + 1) - Math.sqrt(Math.max(spread, 0)) <= z) size = n + 1;
  });
  const chosen = sorted.slice(0, size);
  const mean = size ? sum(chosen) / size : 0;
  const around = sum(chosen.map((z) => (z - mean) ** 2));
  const tau = size ? mean - Math.sqrt((1 - around) / size) : 0;
  const weights = shifted.map((z) => (exists(z) ? Math.max(z - tau, 0) ** 2 : 0));
  return { max, shifted, size, mean, around, tau, weights };
}

/** max((α-1)(s - λ) + 1, 0)^(1/(α-1)), with λ such that the row sums to 1, for any α > 0 */
export function entmax(scores, alpha) {
  if (alpha === 1) return softmax(scores);
  if (alpha === 1.5) return entmax15(scores);
  if (alpha === 2) return sparsemax(scores);
  const max = largestOf(scores);
  if (Number.isNaN(max)) return { max, weights: spoilt(scores) };
  const shifted = scores.map((s) => s - max);
  const less = alpha - 1;
  // As exp(t log(1 + u) / u), which loses no digits near α = 1
  const lift = (lambda) => {
    const logs = shifted.map((z) => {
      const t = z - lambda, u = less * t;
      return !exists(z) || u <= -1 ? EMPTY : u === 0 ? t : (t * Math.log1p(u)) / u;
    });
    return {
      weights: logs.map(Math.exp),
      slope: sum(logs.map((l) => (exists(l) ? Math.exp((1 - less) * l) : 0))),
    };
  };
  // No weight is above 1, and the largest of n is at least 1/n: λ lies in [0, most]
  const logN = Math.log(Math.max(shifted.filter(exists).length, 1));
  const most = logN === 0 ? 0 : -Math.expm1(-less * logN) / less;
  let lambda = 0;
  for (let step = 1; step < 60; step++) {
    const middle = lambda + most * 0.5 ** step;
    if (sum(lift(middle).weights) >= 1) lambda = middle;
  }
  for (let step = 0; step < 2; step++) {
    const { weights, slope } = lift(lambda);
    if (slope) lambda += (sum(weights) - 1) / slope;
  }
  return { max, shifted, lambda, weights: lift(lambda).weights };
}

/** All the weight on the largest score, the first of equals */
export function hard(scores) {
  const max = largestOf(scores);
  if (Number.isNaN(max)) return { max, weights: spoilt(scores) };
  const first = scores.findIndex((s) => exists(s) && s === max);
  return { max, first, weights: scores.map((_, j) => (j === first ? 1 : 0)) };
}

export const NORMALIZERS = {
  softmax: (scores) => softmax(scores),
  sparsemax: (scores) => sparsemax(scores),
  entmax15: (scores) => entmax15(scores),
  entmax: (scores, { alpha }) => entmax(scores, alpha),
  hard: (scores) => hard(scores),
};

/** The rule by which query i may see key j; as many queries as keys are the same steps. */
export const SUPPORTS = {
  all: () => true,
  causal: (i, j, { queries, keys }) => j <= i + keys - queries,
  window: (i, j, { queries, keys, radius }) => Math.abs(j - (i + keys - queries)) <= radius,
  edges: (i, j, { edges }) => edges.has(`${j},${i}`),
};
