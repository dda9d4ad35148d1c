// What the computing page begins with: tokens with two features each, and the parameters of heads.

import { plus, times } from "./formulas.js";

const circle = (angle, radius) => [radius * Math.cos(angle), radius * Math.sin(angle)];
const rounded = (x) => x.map((value) => Math.round(value * 100) / 100);

/** A point for a word, always the same one. */
function pointOf(word) {
  let hash = 2166136261;
  for (const character of word.toLowerCase()) hash = Math.imul(hash ^ character.codePointAt(0), 16777619);
  hash = Math.imul(hash ^ (hash >>> 15), 2246822519) >>> 0;
  return rounded(circle(((hash & 0xffff) / 0x10000) * 2 * Math.PI, 0.5 + ((hash >>> 16) / 0x10000) * 1.2));
}

const SENTENCES = {
  en: {
    words: "the animal did not cross the street because it was too tired",
    points: [[-0.2, -0.9], [1.3, 0.9], [-0.8, 0.2], [-1.2, -0.5], [0.1, 1.6], [-0.2, -0.9],
      [-0.5, 1.5], [-1.3, -1.1], [1.1, 1.0], [-0.7, 0.4], [0.9, -1.1], [1.3, -0.8]],
    heads: [1, 4, 4, 4, 4, 6, 4, 9, 9, 11, 11, 9],
  },
  zh: {
    words: "动物 没有 过 马路 因为 它 太 累 了",
    points: [[1.3, 0.9], [-1.2, -0.5], [0.1, 1.6], [-0.5, 1.5], [-1.3, -1.1], [1.1, 1.0],
      [0.9, -1.1], [1.3, -0.8], [-0.4, -0.9]],
    heads: [2, 2, 2, 2, 7, 7, 7, 7, 7],
  },
};

const TRANSLATIONS = {
  en: {
    source: "the agreement on the European Economic Area was signed in August 1992",
    target: "l’ accord sur la zone économique européenne a été signé en août 1992",
    aligned: [0, 1, 2, 3, 6, 5, 4, 7, 8, 8, 9, 10, 11],
  },
  zh: {
    source: "我 昨天 在 图书馆 读 了 一 本 书",
    target: "I read a book in the library yesterday",
    aligned: [0, 4, 6, 8, 2, 3, 3, 1],
  },
};

const PEOPLE = { en: "Ada Bo Cy Di Eve Flo Gus Hal", zh: "甲 乙 丙 丁 戊 己 庚 辛" };
const FRIENDS = [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3], [3, 4], [4, 5], [4, 6], [5, 6], [5, 7], [6, 7]];

const tokens = (names, points) => names.map((name, n) => ({ name, x: [...points[n]] }));

/** Edges `key,query` of pairs, both ways, and of each node to itself. */
function bothWays(pairs, count) {
  const edges = new Set(Array.from({ length: count }, (_, n) => `${n},${n}`));
  for (const [a, b] of pairs) edges.add(`${a},${b}`).add(`${b},${a}`);
  return edges;
}

export const EXAMPLES = {
  sentence: {
    defaults: { score: "scaled_dot", normalizer: "softmax", support: "all", strength: 1.6 },
    tokens(language, text) {
      const own = text ? splitWords(text) : null;
      const known = SENTENCES[language];
      const names = own ?? known.words.split(" ");
      const points = own ? names.map(pointOf) : known.points;
      const heads = own ? names.map((_, n) => Math.max(n - 1, 0)) : known.heads;
      const words = tokens(names, points);
      return { queries: words, keys: words, edges: bothWays(heads.map((head, n) => [head, n]), names.length) };
    },
  },
  decoder: {
    defaults: { score: "scaled_dot", normalizer: "softmax", support: "all", strength: 3 },
    tokens(language) {
      const { source, target, aligned } = TRANSLATIONS[language];
      const keys = source.split(" ");
      const at = (j) => circle(Math.PI * (0.92 - (1.9 * j) / keys.length), 1.7);
      return {
        keys: tokens(keys, keys.map((_, j) => rounded(at(j)))),
        queries: tokens(target.split(" "), aligned.map((j) => rounded(at(j).map((x) => 0.66 * x)))),
        edges: null,
      };
    },
  },
  graph: {
    defaults: { score: "gat", normalizer: "softmax", support: "edges", strength: 1.4 },
    tokens(language) {
      const names = PEOPLE[language].split(" ");
      const points = [[-1.5, 0.7], [-1.1, -0.4], [-0.7, 1.2], [-0.3, 0.2], [0.6, -0.2], [1.1, 0.6], [0.9, -1.2], [1.6, -0.5]];
      const people = tokens(names, points);
      return { queries: people, keys: people, edges: bothWays(FRIENDS, names.length) };
    },
    places: [[-1.55, 0], [-0.95, 0.75], [-0.95, -0.75], [-0.35, 0], [0.35, 0], [0.95, 0.75], [0.95, -0.75], [1.55, 0]],
  },
  dictionary: {
    defaults: { score: "gatv2", normalizer: "softmax", support: "all", strength: 2.4 },
    tokens() {
      const order = [3, 6, 0, 4, 7, 2, 5, 1];
      const points = order.map((n) => rounded(circle(0.31 + (n * 2 * Math.PI) / order.length, 1.5)));
      const names = (letter) => order.map((_, n) => `${letter}${n + 1}`);
      return { queries: tokens(names("q"), points), keys: tokens(names("k"), points), edges: null };
    },
  },
};

export const LONGEST = 24;

/** Words, or the characters of a text that has no spaces and is Chinese. */
export function splitWords(text) {
  const words = text.trim().split(/\s+/).filter(Boolean);
  const split = words.length === 1 && /[\u3040-\u9fff]/u.test(words[0]) ? [...words[0]] : words;
  return split.slice(0, LONGEST);
}

const turn = (angle) => [[Math.cos(angle), -Math.sin(angle)], [Math.sin(angle), Math.cos(angle)]];
const scaledBy = (factor, matrix) => matrix.map((row) => row.map((x) => factor * x));
const product = (a, b) => a.map((row) => b[0].map((_, c) => row.reduce((t, x, r) => t + x * b[r][c], 0)));
const neat = (matrix) => matrix.map((row) => row.map((x) => Math.round(x * 1000) / 1000 || 0));
const ANGLES = [0, Math.PI / 2, Math.PI, -Math.PI / 2];
const TELL_APART = [[1, 0], [-1, 0], [0, 1], [0, -1]];

/** Parameters of one head: what looks like the query, turned by a right angle from head to head. */
export function parametersOf(score, head, strength) {
  const rotation = turn(ANGLES[head % ANGLES.length]);
  const W_q = neat(scaledBy(strength, turn(0)));
  const W_k = neat(scaledBy(strength, rotation));
  switch (score) {
    case "general":
      return { W: neat(scaledBy(strength * strength, rotation)) };
    case "gat":
      return { W: neat(turn(0)), a: [0.8, -0.4], b: neat([times(rotation, [strength, strength / 2])])[0], slope: 0.2 };
    case "gatv2":
    case "additive": {
      // Each pair of units measures one feature's distance |q - k|, as the dictionary needs it
      const bump = score === "additive";
      const rows = scaledBy(bump ? strength / 1.6 : strength, TELL_APART);
      return {
        W_q: neat(rows),
        W_k: neat(product(scaledBy(-1, rows), rotation)),
        bias: bump ? [1, 1, 1, 1] : [0, 0, 0, 0],
        v: bump ? [strength, strength, strength, strength] : [-1, -1, -1, -1],
        ...(bump ? {} : { slope: 0.2 }),
      };
    }
    default:
      return { W_q, W_k };
  }
}

/** A feature as the score takes it: the query and the key. */
export function projected(score, parameters, query, key) {
  if (score === "general") return [query, key];
  if (score === "gat") return [times(parameters.W, query), times(parameters.W, key)];
  const q = times(parameters.W_q, query);
  return [parameters.bias ? plus(q, parameters.bias) : q, times(parameters.W_k, key)];
}
