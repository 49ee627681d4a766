// States have a shape and a word; colour only repeats them.
import { h } from "./dom.js";

const SHAPES = {
  ok: ["M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Z", "m4.9 8.2 2.1 2.1 4.1-4.4"],
  warning: ["M8 1.4 15.4 14.4H.6Z", "M8 6v3.6M8 11.9v.1"],
  error: ["M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1Z", "m5.6 5.6 4.8 4.8m0-4.8-4.8 4.8"],
  running: ["M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Z", "M8 4.6V8l2.3 1.6"],
  waiting: ["M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Z", "M5 8h.1M8 8h.1M11 8h.1"],
  probing: ["M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Z", "M8 11.6v.1M6.2 6.3a1.9 1.9 0 1 1 2.6 1.8c-.5.2-.8.6-.8 1.2"],
  stranded: ["M8 .8 15.2 8 8 15.2.8 8Z", "M8 4.8v3.8M8 10.9v.1"],
  none: ["M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Z", "M5.2 8h5.6"],
};

const LINES = {
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9Zm3.3 7.8 3.4 3.4",
  light: "M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6ZM8 1v1.6M8 13.4V15M1 8h1.6M13.4 8H15M3 3l1.2 1.2M11.8 11.8 13 13M3 13l1.2-1.2M11.8 4.2 13 3",
  dark: "M13.4 9.7A5.8 5.8 0 0 1 6.3 2.6a5.8 5.8 0 1 0 7.1 7.1Z",
  system: "M2 3h12v8H2zM5.5 14h5M8 11v3",
  back: "M9.8 3.2 5 8l4.8 4.8",
  next: "M6.2 3.2 11 8l-4.8 4.8",
};

/** A filled shape in the state's colour; `kind` is a key of SHAPES. Says nothing to screen readers:
 * the word stands beside it. */
export function mark(kind, tone = kind) {
  const [outline, inside] = SHAPES[kind] ?? SHAPES.none;
  return h("svg", { class: `mark ${tone}`, viewBox: "0 0 16 16", "aria-hidden": "true" },
    h("path", { class: "outline", d: outline }),
    h("path", { class: "inside", d: inside }));
}

/** A thin line drawing. */
export function glyph(name) {
  return h("svg", { class: "glyph", viewBox: "0 0 16 16", "aria-hidden": "true" },
    h("path", { d: LINES[name] }));
}
