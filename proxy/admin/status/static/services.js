// The services behind the proxy, and their circuit breakers.
import { chart, P50, P95, P99, RATE, rateSpark } from "./charts.js";
import { ask } from "./ask.js";
import { h } from "./dom.js";
import { ago, DASH, failure, latency, plural, rate, sentence, share, span, time, words } from "./format.js";
import { badge, empty, facts, figure, figures, link, notice, page, section, table } from "./parts.js";

const STATES = {
  closed: ["ok", "ok", "Closed"],
  open: ["error", "error", "Open"],
  half_open: ["probing", "warning", "Probing"],
  forced_open: ["error", "warning", "Open by hand"],
  forced_closed: ["ok", "warning", "Closed by hand"],
};

const MEANING = {
  open: "Calls are refused at once.",
  half_open: "A few calls are let through to see whether it is well again.",
  forced_open: "Somebody has cut it off.",
  forced_closed: "Calls pass, and failures are not watched.",
};

export function servicesSection(state) {
  const { upstreams } = state.snapshot;
  return section("services", "Services", null,
    upstreams.length
      ? h("div", { class: "cards" }, upstreams.map((one) => card(state, one)))
      : empty("No upstream is configured."));
}

function card(state, service) {
  const { breaker } = service;
  const down = service.targets.filter((one) => !one.healthy || one.ejected);
  const sore = breaker && breaker.state !== "closed" ? STATES[breaker.state][1] : down.length ? "warning" : "";
  return h("article", { class: `card ${sore}`, key: service.name, "aria-labelledby": `service-${service.name}` },
    h("div", { class: "card-head" },
      h("h3", { id: `service-${service.name}` }, link({ upstream: service.name }, service.name)),
      breaker ? stateBadge(breaker) : h("span", { class: "badge muted" }, "No breaker")),
    numbers(service),
    rateSpark(state.points.get(`service:${service.name}`)),
    breaker && breaker.state !== "closed" && trouble(state, breaker),
    down.length > 0 && h("p", { class: "card-note" },
      `${down.length} of ${plural(service.targets.length, "target")} out of use`),
    breaker && h("div", { class: "card-foot" }, controls(breaker), lastFailure(state, breaker)));
}

function numbers(service) {
  return figures(
    figure("requests", rate(service.rate)),
    figure("failed", share(service.error_share), service.errors ? "bad" : ""),
    figure("P95", latency(service.p95)));
}

function stateBadge(breaker) {
  const [shape, tone, word] = STATES[breaker.state] ?? ["none", "muted", words(breaker.state)];
  return badge(shape, tone, word);
}

/** Why, and for how long still. */
function trouble(state, breaker) {
  const left = remaining(state, breaker);
  const ending = breaker.state === "forced_closed" ? "Back to watching in"
    : breaker.state === "half_open" ? null : "Tries again in";
  return h("div", { class: "trouble" },
    h("p", null, breaker.reason && breaker.state !== "half_open" ? `${sentence(breaker.reason)}.` : MEANING[breaker.state]),
    ending && left !== null && h("p", { class: "countdown" }, `${ending} `, h("b", null, left > 0 ? span(left) : "a moment")));
}

function remaining(state, breaker) {
  return breaker.until === null ? null : Math.max(0, (Date.parse(breaker.until) - state.now) / 1000);
}

function lastFailure(state, breaker) {
  const last = breaker.recent_failures.at(-1);
  return h("span", { class: "last" },
    last ? `last failure ${ago(last.at, state.now)}` : "no failures seen");
}

function controls(breaker) {
  const button = (action, label, off) =>
    h("button", {
      type: "button", class: "small", disabled: off, "data-action": action,
      "aria-label": `${label} the circuit of ${breaker.name}`,
      onclick: () => ask(breaker.name, action),
    }, label);
  return h("span", { class: "controls" },
    button("open", "Open", breaker.state === "forced_open"),
    button("close", "Close", breaker.state === "forced_closed"),
    button("reset", "Reset", breaker.state === "closed" && breaker.failures === 0));
}

// --- one service ---------------------------------------------------------------------------------

export function servicePage(state, name) {
  const service = state.snapshot.upstreams.find((one) => one.name === name);
  if (!service) return page(name, null, empty("There is no upstream of this name in the config in force."));
  const { breaker } = service;
  const points = state.points.get(`service:${name}`);
  return page(name, breaker && stateBadge(breaker),
    breaker && breaker.state !== "closed" && notice(STATES[breaker.state][1], trouble(state, breaker)),
    numbers(service),
    charts(points),
    breaker && section("breaker", "Circuit breaker", controls(breaker), breakerFacts(state, breaker),
      h("h3", null, "Last failures"), failures(state, breaker)),
    section("targets", "Targets", null, targets(service)));
}

export function charts(points) {
  return h("div", { class: "charts" },
    chart("Requests", points, [[RATE, "plain", "rate"]], (value) => rate(value), { errors: true, least: 0.2 }),
    chart("Latency", points, [[P50, "p50", "P50"], [P95, "p95", "P95"], [P99, "p99", "P99"]],
      (value) => latency(value)));
}

function breakerFacts(state, breaker) {
  const left = remaining(state, breaker);
  return facts([
    ["State", `${STATES[breaker.state]?.[2] ?? words(breaker.state)}${since(state, breaker)}`],
    ["Reason", breaker.reason],
    ["Until", breaker.until && `${time(breaker.until)}, ${span(left)} left`],
    ["Failures in a row", String(breaker.failures)],
    ["Calls refused", breaker.rejections.toLocaleString("en")],
    ["Probes under way", breaker.probes_in_flight ? String(breaker.probes_in_flight) : null],
    ["Decided by", breaker.by],
    ["Shared with other proxies", breaker.shared ? "yes, through Redis" : "no"],
  ]);
}

/** A circuit that never changed is as it is since the beginning of time. */
function since(state, breaker) {
  return Date.parse(breaker.since) > 1e12 ? ` since ${time(breaker.since)} (${ago(breaker.since, state.now)})` : "";
}

function failures(state, breaker) {
  if (!breaker.recent_failures.length) return empty("None seen since the start.");
  return table("Last failures", "plain",
    h("thead", null, h("tr", null, ["When", "What", "Target", "Trace"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, breaker.recent_failures.toReversed().map((one) => h("tr", null,
      h("td", null, `${time(one.at)} (${ago(one.at, state.now)})`),
      h("td", null, sentence(failure(one.kind))),
      h("td", { class: "code" }, one.target ?? DASH),
      h("td", null, one.correlation_id ? link({ trace: one.correlation_id }, short(one.correlation_id)) : DASH)))));
}

export const short = (id) => (id.length > 13 ? h("span", { class: "code", title: id }, `${id.slice(0, 12)}…`) : h("span", { class: "code" }, id));

function targets(service) {
  return table("Targets", "plain",
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Target"), h("th", { scope: "col" }, "State"))),
    h("tbody", null, service.targets.map((one) => h("tr", null,
      h("td", { class: "code" }, one.target),
      h("td", null, one.ejected ? badge("warning", "warning", "Left out for failed calls")
        : one.healthy ? badge("ok", "ok", "In use") : badge("error", "error", "Health checks fail"))))),
    h("tfoot", null, h("tr", null, h("td", null, "Connections"),
      h("td", null, `${service.connections.active} in use, ${service.connections.idle} idle`))));
}
