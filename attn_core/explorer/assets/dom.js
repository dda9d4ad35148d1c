// Elements. Text goes in as text, never as markup: names come from anybody's data.

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, x] of Object.entries(value)) element.style.setProperty(key, x);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const html = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

/** A text cut to about so many columns, in which Chinese characters count twice. */
export function cut(text, columns) {
  let width = 0, kept = "";
  for (const character of text) {
    width += character.codePointAt(0) > 0x2e7f ? 2 : 1;
    if (width > columns) return `${kept}…`;
    kept += character;
  }
  return kept;
}

const ruler = document.createElement("canvas").getContext("2d");

/** How many pixels the widest of the texts takes, in the bold type that marks it. */
export function widest(texts) {
  ruler.font = '700 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
  return Math.ceil(Math.max(...texts.map((text) => ruler.measureText(text).width)));
}
