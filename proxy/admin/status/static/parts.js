// Pieces that several views share.
import { h } from "./dom.js";
import { mark } from "./icons.js";

/** A section with its heading; `aside` stands at the heading's right. */
export function section(id, title, aside, ...content) {
  return h("section", { class: "section", id, "aria-labelledby": `${id}-title` },
    h("div", { class: "section-head" },
      h("h2", { id: `${id}-title` }, title), aside),
    ...content);
}

/** A figure with its name below. */
export function figure(name, value, tone = "") {
  return h("div", { class: `figure ${tone}` }, h("dd", null, value), h("dt", null, name));
}

export const figures = (...all) => h("dl", { class: "figures" }, ...all);

/** A state: shape, word, colour. */
export function badge(shape, tone, word) {
  return h("span", { class: `badge ${tone}` }, mark(shape, tone), h("span", null, word));
}

export function empty(...content) {
  return h("p", { class: "empty" }, ...content);
}

export function notice(tone, ...content) {
  return h("div", { class: `notice ${tone}` }, mark(tone === "plain" ? "none" : tone, tone), h("div", null, ...content));
}

/** A table that is scrolled sideways where it does not fit, by keyboard too. */
export function table(name, kind, ...rows) {
  return h("div", { class: "scroll", role: "group", "aria-label": name, tabindex: "0" },
    h("table", { class: kind }, ...rows));
}

/** A page of its own: a way back, and its title, which takes the focus. */
export function page(title, subtitle, ...content) {
  return [
    h("nav", { class: "back", key: "back", "aria-label": "Back" }, h("a", { href: "/" }, "← Overview")),
    h("div", { class: "page-head", key: `head-${title}` },
      h("h2", { class: "page-title", tabindex: "-1" }, title), subtitle),
    ...content,
  ];
}

export const link = (query, ...content) =>
  h("a", { href: `/?${new URLSearchParams(query)}` }, ...content);

/** Rows of a definition list; null values vanish. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}
