// The routes: how often, how well, how fast.
import { covered, latencySpark, rateSpark } from "./charts.js";
import { h } from "./dom.js";
import { DASH, latency, rate, share } from "./format.js";
import { empty, facts, figure, figures, link, page, section } from "./parts.js";
import { charts } from "./services.js";

const FIRST = 25;

/** What wants a look comes first; among equals, the busiest. */
const trouble = (one) => (one.errors ? 2 + one.error_share : 0) + (one.refused ? one.refused_share : 0);
const byTrouble = (one, other) => trouble(other) - trouble(one) || other.rate - one.rate;

const FILTERS = {
  all: ["All", () => true],
  troubled: ["In trouble", (one) => one.errors || one.refused],
  busy: ["With requests", (one) => one.requests],
};

export function routesSection(state) {
  const given = state.snapshot.routes;
  const chosen = FILTERS[state.params.get("routes")] ? state.params.get("routes") : "all";
  const words = (state.params.get("find") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const found = given.filter(FILTERS[chosen][1]).filter((one) => words.every((word) => text(one).includes(word)));
  const all = state.params.get("more") === "routes";
  // A few stay as the config has them: rows that change places are hard to read.
  const sorted = given.length > FIRST ? found.toSorted(byTrouble) : found;
  const routes = all ? sorted : sorted.slice(0, FIRST);
  const window = Math.round(Math.max(0, ...routes.map((one) => one.seconds)));
  const note = h("span", { class: "note" }, window >= 60 || !window ? "last minute" : `last ${window} s`);
  return section("routes", "Routes", given.length > FIRST ? filters(state, given, chosen, note) : note,
    h("table", { class: "routes" },
      h("thead", null, h("tr", null,
        h("th", { scope: "col" }, "Route"),
        h("th", { scope: "col", class: "wide" }, `Rate, ${covered()}`),
        ["Rate", "Failed", "Refused", "P50", "P95", "P99"].map((name) => h("th", { scope: "col", class: "number" }, name)),
        h("th", { scope: "col", class: "wide" }, `P95, ${covered()}`))),
      ["ingress", "egress"].map((direction) => group(state, direction, routes))),
    words.length > 0 && found.length === 0 && empty("No route has that in its name, path, listener or service."),
    found.length > FIRST && h("p", { class: "more" }, h("a", {
      href: here(state, chosen, { more: all ? null : "routes" }), "data-stay": "",
    }, all ? "Show fewer" : `Show all ${found.length}`)));
}

/** What a filter looks in. */
function text(one) {
  return [one.route, one.path, one.listener, one.upstream, ...(one.methods ?? [])].join(" ").toLowerCase();
}

/** The overview with this choice of routes. */
function here(state, chosen, { find = state.params.get("find"), more = null } = {}) {
  const wanted = Object.entries({ routes: chosen === "all" ? null : chosen, find, more });
  const query = new URLSearchParams(wanted.filter(([, value]) => value));
  return query.size ? `/?${query}` : "/";
}

function filters(state, routes, chosen, note) {
  const typed = (event) => state.replace(here(state, chosen, { find: event.target.value }));
  return h("nav", { class: "filters", "aria-label": "Which routes" }, note,
    h("label", { class: "visually-hidden", for: "find-routes" }, "Find routes"),
    h("input", { id: "find-routes", class: "find", type: "search", placeholder: "Name, path, service", autocomplete: "off",
      spellcheck: "false", maxlength: "128", value: state.params.get("find") ?? "", oninput: typed }),
    Object.entries(FILTERS).map(([name, [label, test]]) => {
      const count = name === "all" ? 0 : routes.filter(test).length;
      return h("a", {
        href: here(state, name), "data-stay": "",
        "aria-current": chosen === name ? "true" : null,
      }, label, count > 0 && h("span", { class: "count" }, String(count)));
    }));
}

function group(state, direction, routes) {
  const mine = routes.filter((one) => one.direction === direction);
  if (!mine.length) return null;
  return h("tbody", { key: direction },
    h("tr", { class: "group" }, h("th", { colspan: "9", scope: "rowgroup" },
      direction === "ingress" ? "From callers to the service" : "From the service to others")),
    mine.map((one) => row(state, one)));
}

function row(state, one) {
  const name = `${one.listener}/${one.route}`;
  const points = state.points.get(`route:${name}`);
  const number = (label, value, tone = "") =>
    h("td", { class: `number ${tone}`, "data-label": label }, value);
  return h("tr", { key: name, class: one.requests ? "" : "idle" },
    h("th", { scope: "row" },
      link({ route: name }, one.route === "-" ? "no route matched" : one.route),
      h("span", { class: "what" }, what(one))),
    h("td", { class: "wide" }, rateSpark(points)),
    number("Rate", rate(one.rate)),
    number("Failed", one.requests ? share(one.error_share) : DASH, one.errors ? "bad" : ""),
    number("Refused", one.requests ? share(one.refused_share) : DASH, one.refused ? "soft" : ""),
    number("P50", latency(one.p50)),
    number("P95", latency(one.p95)),
    number("P99", latency(one.p99)),
    h("td", { class: "wide" }, latencySpark(points)));
}

function what(one) {
  if (one.route === "-") return `on ${one.listener}`;
  return one.direction === "egress" ? `→ ${one.upstream}` : `${(one.methods ?? ["any"]).join(" ")} ${one.path}`;
}

export function routePage(state, name) {
  const one = state.snapshot.routes.find((route) => `${route.listener}/${route.route}` === name);
  if (!one) return page(name, null, empty("There is no such route in the config in force."));
  return page(one.route === "-" ? "No route matched" : one.route, h("span", { class: "note" }, `on ${one.listener}`),
    figures(
      figure("requests", rate(one.rate)),
      figure("failed (5xx)", share(one.error_share), one.errors ? "bad" : ""),
      figure("refused (4xx)", share(one.refused_share), one.refused ? "soft" : ""),
      figure("P50", latency(one.p50)), figure("P95", latency(one.p95)), figure("P99", latency(one.p99))),
    charts(state.points.get(`route:${name}`)),
    facts([
      ["Path", one.path && h("span", { class: "code" }, `${(one.methods ?? ["any method"]).join(" ")} ${one.path}`)],
      ["Direction", one.direction === "ingress" ? "from callers to the service" : "from the service to others"],
      ["Service", one.route === "-" ? null : link({ upstream: one.upstream }, one.upstream)],
      ["In progress", String(one.in_flight)],
    ]));
}
