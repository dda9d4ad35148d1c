// The frame that every view stands in.

import { html } from "./dom.js";
import { say } from "./i18n.js";

/** A titled part of the page. */
export function card(id, title, hint, ...body) {
  return html("section", { class: "card", id, "aria-labelledby": `${id}-title`, tabindex: "-1" },
    html("header", {}, html("h2", { id: `${id}-title` }, say(title)), hint ? html("p", { class: "hint" }, say(hint)) : null),
    ...body);
}

/** Where a picture is drawn, which takes the keyboard. */
export function stage(name, onkeydown, ...children) {
  return html("div", {
    class: `stage ${name}`, tabindex: "0", role: "application",
    "aria-label": say(name), "aria-describedby": "help", onkeydown,
  }, ...children);
}

/** Exchange the content, and give the focus back to the element of the same id. */
export function exchange(container, ...children) {
  const id = container.contains(document.activeElement) ? document.activeElement.id : "";
  container.replaceChildren(...children);
  if (id) document.getElementById(id)?.focus({ preventScroll: true });
}

/** Call `draw` when the element gets another width, now included. */
export function whenResized(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (Math.round(element.clientWidth) === width) return;
    width = Math.round(element.clientWidth);
    draw();
  }).observe(element);
}
