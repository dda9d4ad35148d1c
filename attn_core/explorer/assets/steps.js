// One query after the other: what it reads, and what was written before it.

import { app, choose, chooseQuery, hover, marked, nameOf, shareOf } from "./app.js";
import { colour, inkOn } from "./colours.js";
import { html } from "./dom.js";
import { say } from "./i18n.js";
import { card, exchange } from "./parts.js";

const MOST = 80; // keys that are written out
const PAUSE = 1100; // milliseconds

export function stepsView() {
  const button = (id, name, sign, onclick) =>
    html("button", { type: "button", id, class: "round", "aria-label": say(name), title: say(name), onclick }, sign);
  let timer = null;
  const go = (by) => {
    const count = app.attention.queries.length;
    chooseQuery((app.chosen.i + by + count) % count);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    name();
  };
  const play = button("play", "play", "▶", () => {
    if (timer !== null) return stop();
    if (app.chosen.i === app.attention.queries.length - 1) chooseQuery(0);
    timer = setInterval(() => {
      go(1);
      if (app.chosen.i === app.attention.queries.length - 1) stop();
    }, PAUSE);
    name();
  });
  function name() {
    const playing = timer !== null;
    play.textContent = playing ? "❚❚" : "▶";
    for (const attribute of ["aria-label", "title"]) play.setAttribute(attribute, say(playing ? "pause" : "play"));
  }
  const slider = html("input", { type: "range", id: "step", min: "0", step: "1", "aria-label": say("query"), oninput: () => chooseQuery(Number(slider.value)) });
  const where = html("output", { for: "step", class: "where" });
  const written = html("p", { class: "written", id: "written" });
  const read = html("ul", { class: "chips", id: "read", "aria-label": say("keys") });

  function draw() {
    const { attention, chosen, head } = app;
    const { queries, keys } = attention;
    const { i } = chosen;
    slider.max = queries.length - 1;
    slider.value = i;
    slider.setAttribute("aria-valuetext", nameOf(queries, i));
    where.textContent = say("step", { n: i + 1, total: queries.length });
    const first = Math.max(0, i - 30);
    written.replaceChildren(first ? "… " : "", ...queries.slice(first, i).map((q) => html("span", {}, `${q.name} `)), html("mark", {}, nameOf(queries, i)));
    const share = shareOf();
    const ranked = attention.ranked(head, i);
    const shown = keys.length <= MOST ? keys.map((_, j) => j) : ranked.slice(0, MOST).sort((a, b) => a - b);
    exchange(read, ...shown.map((j) => {
      const there = attention.has(i, j), weight = there ? attention.at(head, i, j) : 0;
      const chip = html("button", { type: "button", id: `chip-${j}`, class: there ? "chip" : "chip none", onclick: () => choose(i, j) },
        html("span", {}, nameOf(keys, j)), html("small", {}, there ? `${(100 * weight).toFixed(weight < 0.0995 && weight > 0 ? 1 : 0)} %` : "–"));
      chip.addEventListener("pointerenter", (e) => e.pointerType === "touch" || hover({ i, j }));
      chip.addEventListener("pointerleave", () => hover(null));
      if (there) {
        chip.style.background = colour(share(weight));
        chip.style.color = inkOn(share(weight));
      }
      return html("li", {}, chip);
    }));
    mark();
  }

  function mark() {
    const { i, j } = marked();
    for (const chip of read.querySelectorAll("button")) chip.classList.toggle("key", i === app.chosen.i && chip.id === `chip-${j}`);
  }

  return {
    element: card("steps", "steps", null,
      html("div", { class: "player" }, button("previous", "previous", "‹", () => go(-1)), play, button("next", "next", "›", () => go(1)), slider, where),
      html("p", { class: "label" }, app.state?.example === "decoder" ? say("written") : say("query")), written,
      html("p", { class: "label" }, say("reads")), read),
    draw, mark, chose: draw, stop,
  };
}
