// Small charts: SVG made by hand from the points of the last fifteen minutes.
//
// A point is [requests per second, errors, P50, P95, P99], one every five seconds. The newest is at the
// right. A young proxy's charts show two minutes, and more as it grows older; a series that began later
// than others leaves its left empty. A point without requests is a gap in a line of latencies.
import { h } from "./dom.js";
import { latency, rate, span } from "./format.js";

const MOST = 180;
const LEAST = 24;
const SECONDS = 5; // of a step
const HEIGHT = 100;
const TOP = 6; // room for the stroke

export const RATE = 0;
export const ERRORS = 1;
export const P50 = 2;
export const P95 = 3;
export const P99 = 4;

let steps = MOST; // that every chart covers
let width = steps - 1;

/** The proxy has recorded so many steps. */
export function cover(recorded) {
  steps = Math.max(LEAST, Math.min(MOST, recorded));
  width = steps - 1;
}

/** The time that the charts cover, in words. */
export const covered = () => `${Math.round((steps * SECONDS) / 60)} min`;

const pointAt = (points, index) => index + steps - points.length;
const heightOf = (value, most) => (HEIGHT - ((HEIGHT - TOP) * value) / most).toFixed(1);

/** The lines of a series: `M…L…` for each stretch without a gap; a lone point becomes a short dash. */
function trace(points, column, most) {
  let path = "";
  let open = false;
  points.forEach((point, index) => {
    const value = point[column];
    if (value === null) {
      open = false;
      return;
    }
    const x = pointAt(points, index);
    const alone = !open && (points[index + 1]?.[column] ?? null) === null;
    path += `${open ? "L" : "M"}${x} ${heightOf(value, most)}`;
    if (alone) path += `h0.01`;
    open = true;
  });
  return path;
}

function peak(points, columns, least) {
  let most = least;
  for (const point of points) {
    for (const column of columns) most = Math.max(most, point[column] ?? 0);
  }
  return most;
}

/** Steps with errors, as bars along the bottom. */
function failures(points) {
  const most = peak(points, [ERRORS], 1);
  let path = "";
  points.forEach((point, index) => {
    if (point[ERRORS]) {
      const size = 14 + (26 * point[ERRORS]) / most;
      path += `M${pointAt(points, index)} ${HEIGHT}v-${size.toFixed(1)}`;
    }
  });
  return path && h("path", { class: "failures", d: path });
}

function svg(name, about, ...drawn) {
  return h("svg", {
    class: name, viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none",
    role: "img", "aria-label": about,
  }, ...drawn);
}

/** Requests per second as an area, errors as bars. */
export function rateSpark(points = []) {
  const most = peak(points, [RATE], 0.2);
  const line = trace(points, RATE, most);
  const first = points.length ? pointAt(points, 0) : 0;
  const failed = points.reduce((sum, point) => sum + point[ERRORS], 0);
  const now = points.at(-1)?.[RATE] ?? 0;
  const about = `Requests in the last ${covered()}: now ${rate(now)}, at most ` +
    `${rate(peak(points, [RATE], 0))}, ${failed} failed`;
  return svg("spark", about,
    line && h("path", { class: "area", d: `${line}V${HEIGHT}H${first}Z` }),
    line && h("path", { class: "line", d: line }),
    failures(points));
}

/** One percentile as a line. */
export function latencySpark(points = [], column = P95) {
  const most = peak(points, [column], 0.001);
  const now = points.at(-1)?.[column] ?? null;
  const about = `P95 in the last ${covered()}: now ${now === null ? "no requests" : latency(now)}, ` +
    `at most ${latency(peak(points, [column], 0))}`;
  const line = trace(points, column, most);
  return svg("spark quiet", about, line && h("path", { class: "line", d: line }));
}

let pointed = null; // {title, share}: where the pointer is, from 0 (left) to 1
let redraw = () => {};

/** What to call when the pointer has moved over a chart. */
export function onPoint(callback) {
  redraw = callback;
}

function point(title, event) {
  const { left, width: wide } = event.currentTarget.getBoundingClientRect();
  pointed = { title, share: Math.min(1, Math.max(0, (event.clientX - left) / wide)) };
  redraw();
}

/** The point that the legend tells of: the newest, or the one under the pointer. */
function chosen(title, points) {
  if (pointed?.title !== title) return { index: points.length - 1, at: "now" };
  const index = Math.round(pointed.share * width) - steps + points.length;
  const back = (points.length - 1 - index) * SECONDS;
  return { index, at: back > 0 ? `${span(back)} ago` : "now" };
}

/** A full chart with its scale: `columns` of [column, class, name]. */
export function chart(title, points = [], columns, write, { errors = false, least = 0.001 } = {}) {
  const most = nice(peak(points, columns.map(([column]) => column), least));
  const { index, at } = chosen(title, points);
  const value = (column, place) => write(points[place]?.[column] ?? null);
  const now = columns.map(([column, , name]) => `${name} ${value(column, points.length - 1)}`);
  const x = pointAt(points, index);
  return h("figure", { class: "chart" },
    h("figcaption", null,
      h("span", { class: "chart-title" }, title, " ", h("span", { class: "note" }, at)),
      h("span", { class: "legend" },
        columns.map(([column, kind, name]) => h("span", { class: `key ${kind}` }, h("i", { "aria-hidden": "true" }),
          `${name} `, h("b", null, value(column, index)))),
        errors && h("span", { class: "key" }, "failed ", h("b", null, String(points[index]?.[ERRORS] ?? 0))))),
    h("div", { class: "plot" },
      h("div", { class: "scale", "aria-hidden": "true" },
        h("span", null, write(most)), h("span", null, write(most / 2)), h("span", null, "0")),
      h("div", {
        class: "field", onpointermove: (event) => point(title, event),
        onpointerleave: () => { pointed = null; redraw(); },
      }, svg("canvas", `${title}, last ${covered()}: ${now.join(", ")}`,
        h("path", { class: "grid", d: `M0 ${TOP}H${width}M0 ${(HEIGHT + TOP) / 2}H${width}M0 ${HEIGHT}H${width}` }),
        columns.map(([column, kind]) =>
          h("path", { class: `line ${kind}`, d: trace(points, column, most) })),
        errors && failures(points),
        pointed?.title === title && h("path", { class: "pointer", d: `M${x} ${TOP}V${HEIGHT}` })))),
    h("div", { class: "ends", "aria-hidden": "true" }, h("span", null, `${covered()} ago`), h("span", null, "now")));
}

/** The next of 1, 2, 5, 10, 20, ... */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const digit = [1, 2, 5, 10].find((one) => one * power >= value * 0.999);
  return digit * power;
}
