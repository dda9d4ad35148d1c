// Puts the page together, and keeps the settings in its address.

import { app, chooseQuery, drawNow, redraw } from "./app.js";
import { arcsView } from "./arcs.js";
import { arithmeticView } from "./arithmetic.js";
import { compareView } from "./compare.js";
import { computeControls, givenControls } from "./controls.js";
import { html } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { NORMALIZERS, SCORES, SUPPORTS } from "./formulas.js";
import { LANGUAGES, language, say, setDigits, speak } from "./i18n.js";
import { matrixView } from "./matrix.js";
import { attentionOf, computed, freshState } from "./model.js";
import { networkView } from "./network.js";
import { planeView } from "./plane.js";
import { stepsView } from "./steps.js";
import { pythonView, tableView } from "./tables.js";

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
let playing = null; // the view that may be playing

function paint() {
  document.documentElement.dataset.theme = theme === "auto" ? (prefersDark.matches ? "dark" : "light") : theme;
}

// --- The address ---------------------------------------------------------------------------------

const NUMBERS = { temperature: [0.1, 10], alpha: [0.5, 3], radius: [0, 6], headCount: [1, 4] };
const NAMES = { score: SCORES, normalizer: NORMALIZERS, support: SUPPORTS };

/** The settings that differ from the example's, to be taken up again or passed on. */
function remember() {
  const words = new URLSearchParams();
  words.set("lang", language());
  const { state } = app;
  if (state) {
    words.set("example", state.example);
    if (state.text) words.set("words", state.text);
    for (const name of [...Object.keys(NAMES), ...Object.keys(NUMBERS)]) {
      if (state[name] !== app.fresh[name]) words.set(name, state[name]);
    }
  }
  try {
    history.replaceState(null, "", `#${words}`);
  } catch { /* a page inside another may have no address of its own */ }
}

function recall(example, words) {
  const state = freshState(example, language(), words.get("words") ?? "");
  app.fresh = { ...state };
  for (const [name, known] of Object.entries(NAMES)) {
    const value = words.get(name);
    if (value && Object.hasOwn(known, value) && !(value === "edges" && !state.edges)) state[name] = value;
  }
  for (const [name, [low, high]] of Object.entries(NUMBERS)) {
    const value = Number(words.get(name) ?? NaN);
    if (value >= low && value <= high && (name !== "headCount" && name !== "radius" || Number.isInteger(value))) state[name] = value;
  }
  return state;
}

// --- Changes -------------------------------------------------------------------------------------

function recompute() {
  app.attention = computed(app.state);
  remember();
  redraw();
}

function begin(example, words) {
  app.state = recall(example, words);
  app.attention = computed(app.state);
  app.head = app.state.headCount > 1 ? "mean" : 0;
  app.hovered = null;
  const i = { sentence: app.state.text ? 0 : app.state.keys.length > 9 ? 8 : 5, graph: 3 }[example] ?? 0;
  app.chosen = { i: Math.min(i, app.attention.queries.length - 1), j: 0 };
  app.chosen.j = app.attention.ranked(app.head, app.chosen.i)[0] ?? 0;
}

function restart(example, text) {
  begin(example, new URLSearchParams(text.trim() ? { words: text.trim() } : {}));
  build();
}

function headsChanged(count) {
  app.state.headCount = count;
  app.head = count > 1 ? "mean" : 0;
  recompute();
}

function layerChanged(layer) {
  app.layer = layer;
  app.attention = attentionOf(app.data, layer);
  app.head = app.attention.heads.length > 1 ? "mean" : 0;
  chooseQuery(Math.min(app.chosen.i, app.attention.queries.length - 1), false);
  redraw();
}

// --- The page ------------------------------------------------------------------------------------

function switcher(name, options, value, onchange) {
  return html("fieldset", { class: "switch" }, html("legend", { class: "unseen" }, say(name)), options.map(([key, text]) =>
    html("label", {}, html("input", { type: "radio", name, id: `${name}-${key}`, value: key, checked: key === value, onchange: () => onchange(key) }), html("span", {}, text))));
}

function header() {
  const languages = switcher("language", Object.entries(LANGUAGES), language(), (name) => {
    speak(name);
    if (app.state) begin(app.state.example, new URLSearchParams(location.hash.slice(1)));
    build();
  });
  const themes = switcher("theme", ["auto", "light", "dark"].map((name) => [name, say(name)]), theme, (name) => {
    theme = name;
    paint();
    redraw();
  });
  const title = app.data.title ?? say("title");
  document.title = title;
  return html("header", { class: "top" },
    html("div", {}, html("h1", {}, title), html("p", { class: "lead" }, say(app.state ? "subtitle" : "subtitleWeights"))),
    html("div", { class: "switches" }, languages, themes));
}

function examples() {
  const { example } = app.state;
  return html("nav", { class: "examples", "aria-label": say("examples") },
    switcher("examples", Object.keys(EXAMPLES).map((name) => [name, say(name)]), example, (name) => restart(name, "")),
    html("p", { class: "hint" }, say(`about${example[0].toUpperCase()}${example.slice(1)}`)));
}

const isGraph = () => app.data.graph || app.state?.example === "graph";

function build() {
  playing?.stop();
  const focused = document.activeElement?.id;
  const { state } = app;
  app.live = html("div", { class: "unseen", role: "status", "aria-live": "polite", id: "live" });
  const controls = state ? computeControls(recompute, restart, headsChanged) : givenControls(redraw, layerChanged);
  playing = stepsView();
  const compare = state?.example === "dictionary" ? compareView(recompute) : null;
  const arithmetic = arithmeticView(), table = tableView(), python = state ? pythonView() : null;
  const [matrix, arcs, network] = [matrixView(), arcsView(), networkView()];
  const plane = state ? planeView(recompute) : null;
  const first = isGraph() ? [network, plane ?? arithmetic] : [matrix, arcs];
  const second = isGraph() ? [matrix, arcs] : [network, plane ?? arithmetic];
  app.views = [controls, playing, compare, matrix, arcs, network, plane, arithmetic, table, python].filter(Boolean);
  const wide = matchMedia("(min-width: 900px)").matches;
  const settings = html("details", { class: "card settings", id: "settings", open: wide }, html("summary", {}, say("settings")), controls.element);
  const element = (view) => view?.element ?? "";
  document.getElementById("page").replaceChildren(
    html("a", { class: "skip", href: "#matrix", onclick: (event) => {
      event.preventDefault();
      document.querySelector(".stage").focus();
    } }, say("skip")),
    header(), state ? examples() : "",
    html("div", { class: "body" }, settings, html("main", {},
      html("p", { class: "unseen", id: "help" }, say("help")),
      element(compare), playing.element,
      html("div", { class: "pictures" }, first.map(element)), state ? arithmetic.element : "",
      html("div", { class: "pictures" }, second.map(element)), table.element, element(python))),
    html("footer", {}, say("footer")), app.live);
  remember();
  drawNow();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function start() {
  app.data = JSON.parse(document.getElementById("data").textContent);
  app.digits = 4;
  setDigits(app.digits);
  const words = new URLSearchParams(location.hash.slice(1));
  const wanted = words.get("lang") ?? app.data.language ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  speak(wanted);
  paint();
  prefersDark.addEventListener("change", () => {
    paint();
    redraw();
  });
  if (app.data.kind === "compute") {
    const example = words.get("example") ?? app.data.example;
    begin(Object.hasOwn(EXAMPLES, example) ? example : "sentence", words);
  } else {
    app.attention = attentionOf(app.data, 0);
    app.head = app.attention.heads.length > 1 ? "mean" : 0;
    app.chosen = { i: 0, j: app.attention.ranked(app.head, 0)[0] ?? 0 };
  }
  build();
}

start();
