// What can be chosen.

import { app, redraw } from "./app.js";
import { LONGEST } from "./examples.js";
import { NORMALIZERS, SCORES, SUPPORTS } from "./formulas.js";
import { html } from "./dom.js";
import { say, setDigits, show } from "./i18n.js";
import { parameters } from "./model.js";
import { exchange } from "./parts.js";

const MOST_HEADS = 4;

const field = (name, control, extra = null) =>
  html("div", { class: "field" }, html("label", { for: control.id }, say(name), extra ? [" ", extra] : null), control);

function choice(id, options, value, onchange, disabled = () => false) {
  const select = html("select", { id, onchange: () => onchange(select.value) },
    options.map(([name, text]) => html("option", { value: name, disabled: disabled(name), selected: String(value) === String(name) }, text)));
  return select;
}

function range(id, { min, max, step, value, text }, oninput) {
  const output = html("output", { for: id }, text(value));
  const input = html("input", { type: "range", id, min, max, step, value, "aria-valuetext": text(value), oninput: () => {
    const now = Number(input.value);
    output.textContent = text(now);
    input.setAttribute("aria-valuetext", text(now));
    oninput(now);
  } });
  return [input, output];
}

const named = (names) => names.map((name) => [name, say(name)]);
const tau = (exponent) => Number((10 ** exponent).toFixed(2));

/** Head, colours and digits, which both kinds of page have. */
function shownControls(changed) {
  const heads = app.attention.heads.length;
  const options = [["mean", say("mean")], ...Array.from({ length: heads }, (_, h) => [h, say("headN", { n: h })])];
  return [
    heads > 1 ? field("head", choice("head", options, app.head, (value) => {
      app.head = value === "mean" ? value : Number(value);
      changed();
    })) : null,
    field("scale", choice("scale", [["largest", say("scaleLargest")], ["one", say("scaleOne")]], app.scale, (value) => {
      app.scale = value;
      changed();
    })),
    field("digits", choice("digits", [["2", "2"], ["4", "4"], ["8", "8"], ["all", say("allDigits")]], app.digits, (value) => {
      app.digits = value === "all" ? value : Number(value);
      setDigits(app.digits);
      redraw();
    })),
  ];
}

export function givenControls(changed, layerChanged) {
  const body = html("div", { class: "controls" });
  const layers = app.data.layers.map((layer, n) => [n, layer.name]);
  function draw() {
    exchange(body,
      layers.length > 1 ? field("layer", choice("layer", layers, app.layer, (value) => layerChanged(Number(value)))) : "",
      ...shownControls(changed).filter(Boolean));
  }
  return { element: body, draw };
}

/** The numbers of one head's parameters, each of which can be changed. */
function parameterFields(recompute) {
  const { state } = app;
  const head = app.head === "mean" ? 0 : app.head;
  const own = parameters(state, state.score, head);
  const entry = (label, value, set) => html("input", {
    type: "number", step: "0.1", value: Math.round(value * 1000) / 1000, "aria-label": label, id: `p-${label}`, oninput: (event) => {
      const number = event.target.valueAsNumber;
      if (!Number.isFinite(number)) return;
      set(Math.min(Math.max(number, -100), 100));
      recompute();
    },
  });
  return Object.entries(own).map(([name, value]) => {
    const rows = typeof value === "number" ? [[value]] : typeof value[0] === "number" ? [value] : value;
    return html("div", { class: "parameter" }, html("span", {}, name),
      html("div", { class: "numbers", vars: { "--columns": String(rows[0].length) } }, rows.flatMap((row, r) => row.map((x, c) =>
        entry(`${name} ${r + 1} ${c + 1}`, x, (number) => {
          if (typeof value === "number") own[name] = number;
          else row[c] = number;
        })))));
  });
}

export function computeControls(recompute, restart, headsChanged) {
  const body = html("div", { class: "controls" });
  const inner = html("div", { class: "numbers-of-head" });
  const details = html("details", { id: "parameters", ontoggle: drawParameters }, html("summary", {}), inner);
  let shown = "";

  function set(name) {
    return (value) => {
      app.state[name] = value;
      recompute();
      draw();
    };
  }

  function drawParameters() {
    const head = app.head === "mean" ? 0 : app.head;
    details.firstChild.textContent = say("parameters", { head: say("headN", { n: head }) });
    if (details.open && !inner.contains(document.activeElement)) inner.replaceChildren(...parameterFields(recompute));
  }

  function draw() {
    const { state } = app;
    const now = JSON.stringify([state.example, state.score, state.normalizer, state.support, state.headCount, app.head, app.scale, app.digits, state.text]);
    drawParameters();
    if (now === shown && body.childElementCount) return;
    shown = now;
    const [temperature, showsTau] = range("temperature", { min: -1, max: 1, step: 0.05, value: Math.log10(state.temperature), text: (x) => String(tau(x)) },
      (x) => {
        state.temperature = tau(x);
        recompute();
      });
    const [alpha, showsAlpha] = range("alpha", { min: 0.5, max: 3, step: 0.05, value: state.alpha, text: (x) => String(x) }, (x) => {
      state.alpha = x;
      recompute();
    });
    const [radius, showsRadius] = range("radius", { min: 0, max: 6, step: 1, value: state.radius, text: (x) => String(x) }, (x) => {
      state.radius = x;
      recompute();
    });
    const own = html("input", { type: "text", id: "words", maxlength: "300", value: state.text, placeholder: state.queries.map((q) => q.name).join(" "), autocomplete: "off", spellcheck: "false", onchange: () => restart(state.example, own.value) });
    exchange(body,
      state.example === "sentence" ? html("div", { class: "field" }, html("label", { for: "words" }, say("ownWords")), own, html("p", { class: "hint" }, say("ownWordsHint"))) : "",
      field("score", choice("score", named(Object.keys(SCORES)), state.score, set("score"))),
      field("normalizer", choice("normalizer", named(Object.keys(NORMALIZERS)), state.normalizer, set("normalizer"))),
      state.normalizer === "entmax" ? field("alpha", alpha, showsAlpha) : "",
      field("temperature", temperature, showsTau),
      field("support", choice("support", named(Object.keys(SUPPORTS)), state.support, set("support"), (name) => name === "edges" && !state.edges)),
      state.support === "window" ? field("radius", radius, showsRadius) : "",
      field("heads", choice("heads", Array.from({ length: MOST_HEADS }, (_, n) => [n + 1, String(n + 1)]), state.headCount, (value) => headsChanged(Number(value)))),
      ...shownControls(() => {
        redraw();
      }).filter(Boolean),
      html("fieldset", { class: "mask" }, html("legend", {}, say("mask"), " ", html("small", {}, say("maskHint"))),
        state.keys.map((key, j) => html("button", {
          type: "button", id: `mask-${j}`, "aria-pressed": String(!state.hiddenKeys.has(j)), "aria-label": say("maskKey", { key: key.name }),
          onclick: (event) => {
            if (!state.hiddenKeys.delete(j)) state.hiddenKeys.add(j);
            event.currentTarget.setAttribute("aria-pressed", String(!state.hiddenKeys.has(j)));
            recompute();
          },
        }, key.name))),
      details,
      html("p", { class: "buttons" }, html("button", { type: "button", id: "restart", onclick: () => restart(state.example, "") }, say("reset"))));
  }
  return { element: body, draw };
}
