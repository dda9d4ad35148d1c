// One scale from no weight to the largest: its lightness alone orders it, so that it reads the same
// for every eye and on a grey print; dark paper has the scale the other way up.

const STOPS = {
  light: ["#f3f6ee", "#d3ead0", "#9fd6bf", "#5fb9b0", "#35929f", "#2b6a8f", "#30437a", "#2b1f55"],
  dark: ["#1d2430", "#27395a", "#2a5678", "#2c7688", "#38988d", "#62ba86", "#a5d67f", "#f2ee8c"],
};

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const isDark = () => document.documentElement.dataset.theme === "dark";

/** The colour of a share from 0 to 1, as red, green and blue. */
export function rgb(share, theme = isDark() ? "dark" : "light") {
  const stops = STOPS[theme];
  const x = Math.min(Math.max(Number.isFinite(share) ? share : 0, 0), 1) * (stops.length - 1);
  const at = Math.min(Math.floor(x), stops.length - 2);
  const [from, to] = [parse(stops[at]), parse(stops[at + 1])];
  return from.map((a, c) => Math.round(a + (x - at) * (to[c] - a)));
}

export const colour = (share) => `rgb(${rgb(share).join(" ")})`;

/** How light a colour is to the eye, by WCAG. */
export function luminance(channels) {
  const linear = channels.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

/** Black or white, whichever is read better on the colour of a share. */
export const inkOn = (share) => (luminance(rgb(share)) > 0.179 ? "#000" : "#fff");

/** A line is drawn in the upper part of the scale, which is seen on the paper. */
export const stroke = (share) => colour(0.3 + 0.7 * share);
