// The recent errors, and the whole story of one job ID or correlation ID.
import { h } from "./dom.js";
import { ago, failure, latency, plural, span, time, told, words } from "./format.js";
import { mark } from "./icons.js";
import { empty, link, notice, page, section } from "./parts.js";
import { readErrors, readTrace } from "./data.js";
import { short } from "./services.js";

const SHOWN = 12;
const TONES = { ok: "ok", warning: "warning", error: "error" };

export function errorsSection(state) {
  const thing = state.snapshot.traces ? state.library.want("errors", readErrors) : { document: null, problem: true };
  const kept = thing.document !== null;
  const events = grouped(kept ? thing.document.events : gathered(state.snapshot));
  const all = state.params.get("more") === "errors";
  const loading = !kept && thing.problem === null;
  return section("errors", "Recent errors", !kept && !loading && h("span", { class: "note" }, "as breakers and jobs tell"),
    events.length
      ? h("ol", { class: "errors" }, (all ? events : events.slice(0, SHOWN)).map((event) => errorRow(state, event)))
      : empty(loading ? "Reading …" : "None lately."),
    events.length > SHOWN && h("p", { class: "more" }, h("a", { href: all ? "/" : "/?more=errors", "data-stay": "" },
      all ? "Show fewer" : `Show all ${events.length}`)));
}

function errorRow(state, event) {
  const id = event.job_id ?? event.correlation_id;
  return h("li", null,
    mark(event.severity === "warning" ? "warning" : "error", TONES[event.severity] ?? "error"),
    h("span", { class: "error-what" }, told(event.summary)),
    h("span", { class: "error-source" },
      event.number > 1 && h("span", { class: "count", title: `since ${time(event.since)}` }, plural(event.number, "time"), ", "), words(event.source)),
    h("time", { datetime: event.at, title: time(event.at) }, ago(event.at, state.now)),
    target(state, event, id));
}

function target(state, { facts }, id) {
  if (id) return link({ trace: id }, h("span", { class: "visually-hidden" }, "Trace of "), short(id));
  const service = state.snapshot.upstreams.find((one) => one.name === facts?.service);
  return service ? link({ upstream: service.name }, service.name) : h("span");
}

/** Errors of one kind as one, with how many there were; the newest of each, and the newest kind first.
 * What differs within a kind are IDs and numbers. */
export function grouped(events) {
  const kinds = new Map();
  for (const event of events) {
    const kind = `${event.source} ${event.severity} ${event.summary.replace(VARYING, "…")}`;
    const known = kinds.get(kind);
    if (known) {
      known.number += 1;
      known.since = event.at;
    } else {
      kinds.set(kind, { ...event, number: 1, since: event.at });
    }
  }
  return [...kinds.values()];
}

/** A word with a digit in it, with its unit; but not a status, which tells kinds apart. */
const VARYING = /(?<![\w.-])(?!\d{3}(?![\w.-]))[\w.:-]*\d[\w.:-]*(?: (?:ms|s|min|h|d)\b)?/g;

/** Where no traces are kept: what breakers and jobs remember, as events, the newest first. */
function gathered(snapshot) {
  const calls = snapshot.upstreams.flatMap((one) => (one.breaker?.recent_failures ?? []).map((call) => ({
    at: call.at, source: "attempt", severity: "error", correlation_id: call.correlation_id, job_id: null,
    summary: `${one.name}: ${failure(call.kind)}`,
  })));
  const jobs = snapshot.jobs.list.filter((job) => job.status === "failed").map((job) => ({
    at: job.changed, source: "job", severity: "error", correlation_id: null, job_id: job.job_id,
    summary: `Job failed${job.error ? `: ${job.error}` : ""}`,
  }));
  return [...calls, ...jobs].sort((one, other) => Date.parse(other.at) - Date.parse(one.at)).slice(0, 50);
}

// What an ID looks like: nothing that would mean something to a shell, since a command is shown with it.
const ID = /^[A-Za-z0-9._:-]{1,128}$/;

export function tracePage(state, id) {
  if (!ID.test(id)) return page(h("span", { class: "code" }, id), null, notice("plain", "This is no job ID and no correlation ID."));
  const thing = state.library.want(`trace ${id}`, () => readTrace(id, state.snapshot));
  const title = h("span", { class: "code" }, id);
  if (!thing.document) {
    return page(title, null, thing.problem ? notice("warning", thing.problem.message) : empty("Reading …"));
  }
  const { trace, why, jobs } = thing.document;
  const found = jobs.map(({ mirror, job_id: job }) => link({ job: `${mirror}/${job}` }, "Job ", h("span", { class: "code" }, job), " →"));
  if (!trace) return page(title, null, nothing(id, why, found));
  const kind = { job: "Job", correlation: "Exchange" }[trace.kind] ?? words(trace.kind);
  return page(title, h("span", { class: "note" }, `${kind}, ${plural(trace.events.length, "event")}`),
    trace.suspected_cause && cause(trace),
    trace.note && notice("warning", `Not complete: ${trace.note}.`),
    h("p", { class: "actions" }, found, related(trace, id)),
    trace.events.length ? timeline(trace.events) : empty("Nothing is kept about it."));
}

function nothing(id, why, found) {
  return [
    notice("plain", why),
    found.length > 0 && h("p", { class: "actions" }, found),
    h("p", null, "What the log says about it:"),
    h("pre", { class: "command", tabindex: "0" }, `jq 'select(.correlation_id == "${id}" or .job_id == "${id}")' proxy.log`),
  ];
}

function cause(trace) {
  const { suspected_cause: one } = trace;
  const linked = Number.isInteger(one.event) && trace.events[one.event];
  return h("div", { class: "cause" },
    h("h3", null, mark("error", "error"), "Suspected cause"),
    h("p", { class: "cause-what" }, told(one.summary)),
    h("p", { class: "note" }, `${words(one.kind)} at ${time(one.at)}`,
      linked && [" · ", h("a", { href: `#event-${one.event}`, "data-jump": "" }, "show it below")]));
}

function related(trace, id) {
  const others = [...trace.job_ids, ...trace.correlation_ids].filter((one) => one !== id).slice(0, 12);
  return others.map((one) => link({ trace: one }, h("span", { class: "visually-hidden" }, "Trace of "), short(one)));
}

function timeline(events) {
  const start = Date.parse(events[0].at);
  return h("ol", { class: "timeline" }, events.map((event, index) => {
    const tone = TONES[event.severity] ?? "muted";
    const facts = Object.entries(event.facts ?? {});
    return h("li", { id: `event-${index}`, class: `event ${tone}`, tabindex: "-1" },
      h("div", { class: "event-when" },
        h("time", { datetime: event.at }, time(event.at)),
        h("span", { class: "offset" }, index === 0 ? "start" : after(event, start))),
      mark(tone === "muted" ? "none" : tone, tone),
      h("div", { class: "event-what" },
        h("p", null, h("span", { class: "tag" }, words(event.source)), " ", h("span", null, told(event.summary))),
        event.duration_ms !== null && event.duration_ms !== undefined &&
          h("p", { class: "note" }, `took ${latency(event.duration_ms / 1000)}`),
        facts.length > 0 && h("details", null, h("summary", null, "Facts"),
          h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, write(value))))))));
  }));
}

function after(event, start) {
  const seconds = (Date.parse(event.at) - start) / 1000;
  return seconds > 0 ? `+${span(seconds)}` : "+0 s";
}

function write(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}
