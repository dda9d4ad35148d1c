// What the views share: the attention that is shown, the chosen pair, and who is told of changes.

import { say, show } from "./i18n.js";

export const app = {
  data: null, // of the page: {kind: "compute"} or {kind: "weights", ...}
  state: null, // of the computing page
  attention: null,
  head: "mean",
  layer: 0,
  scale: "largest",
  chosen: { i: 0, j: 0 },
  hovered: null,
  views: [],
  live: null,
};

/** The pair to mark; a hovered word marks a whole row, with j null. */
export const marked = () => app.hovered ?? app.chosen;

let asked = false;

/** Draw everything anew, at the next frame. */
export function redraw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    drawNow();
  });
}

export function drawNow() {
  for (const view of app.views) view.draw();
  mark();
}

/** Mark the same pair in every view. */
export function mark() {
  for (const view of app.views) view.mark?.();
}

export function hover(pair) {
  const same = (a, b) => a === b || (a && b && a.i === b.i && a.j === b.j);
  if (same(pair, app.hovered)) return;
  app.hovered = pair;
  mark();
}

export const nameOf = (tokens, n) => tokens[n].name;

/** Choose a pair; `aloud` tells screen readers, for which a pointer's travels would be noise. */
export function choose(i, j, aloud = true) {
  app.chosen = { i, j };
  app.hovered = null;
  mark();
  for (const view of app.views) view.chose?.();
  if (!aloud || !app.live) return;
  const { attention, head } = app;
  const words = { query: nameOf(attention.queries, i), key: nameOf(attention.keys, j) };
  if (!attention.has(i, j)) app.live.textContent = say("announceNone", words);
  else {
    const ranked = attention.ranked(head, i);
    app.live.textContent = say("announce", {
      ...words, weight: show(attention.at(head, i, j)), rank: ranked.indexOf(j) + 1, total: ranked.length,
    });
  }
}

/** A query's strongest key, which is what a reader wants to see first. */
export function chooseQuery(i, aloud = true) {
  choose(i, app.attention.ranked(app.head, i)[0] ?? 0, aloud);
}

/** One way to walk in every picture: up and down the queries, left and right through the keys. */
export function walk(event, nextKey) {
  const { i, j } = app.chosen;
  const [queries, keys] = [app.attention.queries.length, app.attention.keys.length];
  const clamp = (x, count) => Math.min(Math.max(x, 0), count - 1);
  const key = nextKey ?? ((by) => clamp(j + by, keys));
  const moves = {
    ArrowUp: () => choose(clamp(i - 1, queries), j),
    ArrowDown: () => choose(clamp(i + 1, queries), j),
    ArrowLeft: () => choose(i, key(-1)),
    ArrowRight: () => choose(i, key(1)),
    Home: () => choose(i, 0),
    End: () => choose(i, keys - 1),
    PageUp: () => chooseQuery(clamp(i - 1, queries)),
    PageDown: () => chooseQuery(clamp(i + 1, queries)),
    Enter: () => document.getElementById("arithmetic")?.focus(),
    " ": () => document.getElementById("arithmetic")?.focus(),
  };
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  moves[event.key]();
}

/** Left and right among the pairs that exist, by strength. */
export function byStrength(step) {
  const { i, j } = app.chosen;
  const ranked = app.attention.ranked(app.head, i);
  const at = ranked.indexOf(j) + step;
  return ranked[Math.min(Math.max(at, 0), ranked.length - 1)] ?? j;
}

/** What a weight is drawn with: its share of the colour scale. */
export function shareOf() {
  const most = app.scale === "one" ? 1 : app.attention.largest(app.head);
  return (weight) => weight / most;
}
