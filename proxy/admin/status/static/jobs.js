// Jobs: those that need somebody first, each with its stages; and one job in full.
import { ask } from "./ask.js";
import { h } from "./dom.js";
import { ago, DASH, plural, span, time, words } from "./format.js";
import { badge, empty, facts, link, notice, page, section, table } from "./parts.js";
import { readJob } from "./data.js";

const FIRST = 8;
const LONG_FAILED = 24 * 3600 * 1000; // ms after which a failed job is history
const FINISHED = new Set(["completed", "failed", "cancelled"]);
const WAITING = new Set(["queued", "pending"]);

const FILTERS = {
  all: ["All", () => true],
  failed: ["Failed", (job) => job.status === "failed"],
  stranded: ["Stranded", (job) => job.stranded],
  running: ["Under way", (job) => !FINISHED.has(job.status)],
  completed: ["Completed", (job) => job.status === "completed"],
};

const STAGES = {
  pending: ["waiting", "muted"], running: ["running", "active"], done: ["ok", "ok"],
  failed: ["error", "error"], skipped: ["none", "muted"], retrying: ["warning", "warning"],
  unknown: ["none", "muted"],
};
const STAGE_WORDS = {
  pending: "to come", running: "under way", done: "done", failed: "failed", skipped: "skipped",
  retrying: "waits for another try", unknown: "in an unknown state",
};

function statusOf(job) {
  if (job.deleted) return ["none", "muted", "Deleted"];
  if (job.stranded) return ["stranded", "error", `Stranded, ${words(job.status).toLowerCase()}`];
  if (job.status === "completed") return ["ok", "ok", "Completed"];
  if (job.status === "failed") return ["error", "error", "Failed"];
  if (job.status === "cancelled") return ["none", "muted", "Cancelled"];
  if (WAITING.has(job.status)) return ["waiting", "muted", words(job.status)];
  return ["running", "active", words(job.status)];
}

const jobLink = (job) => link({ job: `${job.mirror}/${job.job_id}` }, h("span", { class: "code" }, job.job_id));

export function jobsSection(state) {
  const { jobs, mirrors } = state.snapshot;
  if (!mirrors.length) return null;
  const chosen = FILTERS[state.params.get("jobs")] ? state.params.get("jobs") : "all";
  const found = jobs.list.filter(FILTERS[chosen][1]);
  const urgent = (job) => (job.stranded ? 2 : 0) + (job.status === "failed" && state.now - job.changed_at * 1000 < LONG_FAILED ? 1 : 0);
  const sorted = found.toSorted((one, other) => urgent(other) - urgent(one));
  const all = state.params.get("more") === "jobs";
  return section("jobs", "Jobs", filters(state, jobs.list, chosen),
    jobs.problem && notice("warning", `Not up to date: ${jobs.problem}.`),
    sorted.length
      ? h("ul", { class: "jobs" }, (all ? sorted : sorted.slice(0, FIRST)).map((job) => row(state, job)))
      : empty(chosen === "all" ? "No job is known yet." : `No ${FILTERS[chosen][0].toLowerCase()} jobs among the latest.`),
    sorted.length > FIRST && h("p", { class: "more" }, h("a", {
      href: `/?${new URLSearchParams({ ...(chosen !== "all" && { jobs: chosen }), ...(!all && { more: "jobs" }) })}`,
      "data-stay": "",
    }, all ? "Show fewer" : `Show all ${sorted.length}`)));
}

function filters(state, list, chosen) {
  return h("nav", { class: "filters", "aria-label": "Which jobs" }, Object.entries(FILTERS).map(([name, [label, test]]) => {
    const count = name === "all" ? 0 : list.filter(test).length;
    return h("a", {
      href: name === "all" ? "/" : `/?jobs=${name}`, "data-stay": "",
      "aria-current": chosen === name ? "true" : null,
    }, label, count > 0 && h("span", { class: "count" }, String(count)));
  }));
}

function row(state, job) {
  const [shape, tone, word] = statusOf(job);
  return h("li", { key: `${job.mirror}/${job.job_id}`, class: `job ${tone}` },
    h("div", { class: "job-what" }, jobLink(job), badge(shape, tone, word)),
    h("div", { class: "job-stages" }, tellsStages(job) ? stageBar(job.stages) : h("span"), h("span", { class: "stage-now" }, current(job))),
    h("div", { class: "job-when" }, h("time", { datetime: job.changed, title: time(job.changed) }, ago(job.changed, state.now))),
    job.error && h("p", { class: "job-error" }, job.error));
}

/** The stage that matters, in words. */
function current(job) {
  const failed = job.stages.find(([, , state]) => state === "failed");
  if (failed) return `failed at ${failed[1]}`;
  const running = job.stages.find(([, , state]) => state === "running" || state === "retrying");
  if (running) return running[1];
  const done = job.stages.filter(([, , state]) => state === "done");
  const took = done.reduce((sum, [, , , seconds]) => sum + (seconds ?? 0), 0);
  if (job.status === "completed" && took) return `${plural(done.length, "stage")} in ${span(took)}`;
  if (job.status === "failed" && !done.length) return "failed before its first stage";
  return tellsStages(job) && job.stages.length ? `${done.length} of ${plural(job.stages.length, "stage")} done` : "";
}

/** A completed job none of whose stages has begun had others: a download's, that nobody writes down. */
function tellsStages(job) {
  return job.status !== "completed" || job.stages.some(([, , state]) => state !== "pending");
}

/** One segment for each stage: filled when done, half when under way, hollow when to come. */
function stageBar(stages) {
  if (!stages.length) return null;
  const about = stages.map(([, title, state]) => `${title} ${STAGE_WORDS[state]}`).join(", ");
  const width = 100 / stages.length;
  return h("svg", { class: "stage-bar", role: "img", "aria-label": `Stages: ${about}`, viewBox: "0 0 100 8", preserveAspectRatio: "none" },
    stages.map(([name, title, state], index) => {
      const x = index * width;
      const inner = Math.max(0.6, width - 1);
      return h("g", { class: `stage ${state}`, key: name },
        h("title", null, `${title}: ${STAGE_WORDS[state]}`),
        h("rect", { class: "back", x, y: "0", width: inner, height: "8" }),
        state === "failed" ? h("rect", { class: "fill", x, y: "0", width: inner, height: "8" })
          : state === "done" ? h("rect", { class: "fill", x, y: "1", width: inner, height: "6" })
          : state === "running" || state === "retrying" ? h("rect", { class: "fill", x, y: "1", width: inner / 2, height: "6" })
          : null);
    }));
}

// --- one job -------------------------------------------------------------------------------------

export function jobPage(state, name) {
  const slash = name.indexOf("/");
  const [mirror, id] = [name.slice(0, slash), name.slice(slash + 1)];
  const live = state.snapshot.jobs.list.find((job) => job.mirror === mirror && job.job_id === id);
  // A new version has a name of its own, so that it is read at once.
  const thing = state.library.want(`job ${name} ${live?.version ?? ""}`, () => readJob(mirror, id));
  const job = thing.document ?? state.lastJob(name);
  if (!job) {
    return page(id, null, thing.problem
      ? notice("warning", thing.problem.status === 404 ? "No job of this ID is known." : thing.problem.message)
      : empty("Reading …"));
  }
  state.keepJob(name, job);
  const [shape, tone, word] = statusOf({ ...job, stranded: live?.stranded });
  return page(h("span", { class: "code" }, id), badge(shape, tone, word),
    job.error && notice("error", h("p", { class: "wrap" }, job.error)),
    live?.stranded && notice("warning", "Nobody works on this job: it is unfinished, and has not changed since ",
      h("b", null, ago(live.changed, state.now)), job.work ? `; ${job.work.evidence}.` : "."),
    job.deleted && notice("plain", `Deleted ${time(job.deleted)}. It will not come back.`),
    h("p", { class: "actions" }, link({ trace: id }, "What happened around this job →"),
      !job.deleted && !FINISHED.has(job.status) && h("button", { type: "button", onclick: () => ask(name, "requeue") }, "Start again …")),
    facts([
      ["Mirror", mirror],
      ["Created", job.created_at && `${time(`${job.created_at.replace(" ", "T")}Z`)}`],
      ["Last change", job.changed && `${time(job.changed)} (${ago(job.changed, state.now)})`],
      ["Kept until", job.expires && time(job.expires)],
      ["Versions seen", String(job.versions.length)],
    ]),
    job.stages?.length > 0 && section("stages", "Stages", null, stageTable(job.stages)),
    section("versions", "Versions", null, versions(state, job)),
    job.data && h("details", { class: "raw" }, h("summary", null, "The document as Redis holds it"), h("pre", { tabindex: "0" }, pretty(job.data))));
}

/** When each stage ran, on one scale. */
function stageTable(stages) {
  const starts = stages.map((one) => (one.started ? Date.parse(one.started) : null));
  const ends = stages.map((one, index) => (one.ended ? Date.parse(one.ended) : starts[index] === null ? null : Date.now()));
  const known = starts.filter((one) => one !== null);
  const first = Math.min(...known);
  const last = Math.max(...ends.filter((one) => one !== null), first + 1);
  return table("Stages", "plain stages",
    h("thead", null, h("tr", null,
      h("th", { scope: "col" }, "Stage"), h("th", { scope: "col" }, "State"),
      h("th", { scope: "col", class: "number" }, "Took"), h("th", { scope: "col", class: "gantt-head" }, known.length ? `When, of ${span((last - first) / 1000)}` : "When"))),
    h("tbody", null, stages.map((one, index) => {
      const [shape, tone] = STAGES[one.state] ?? STAGES.unknown;
      return h("tr", { key: one.name, class: one.state },
        h("th", { scope: "row" }, one.title, one.error && h("p", { class: "job-error" }, one.error)),
        h("td", null, badge(shape, tone, words(STAGE_WORDS[one.state] ?? one.state))),
        h("td", { class: "number" }, one.seconds === null ? DASH : span(one.seconds)),
        h("td", null, starts[index] === null ? null : bar(starts[index], ends[index], first, last, one.state)));
    })));
}

function bar(start, end, first, last, state) {
  const scale = 100 / (last - first);
  const x = (start - first) * scale;
  return h("svg", { class: "gantt", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("rect", { class: "rail", x: "0", y: "4.5", width: "100", height: "1" }),
    h("rect", { class: `fill ${state}`, x: x.toFixed(2), y: "1", width: Math.max(0.8, (end - start) * scale).toFixed(2), height: "8" }));
}

function versions(state, job) {
  if (!job.versions.length) return empty("None is kept.");
  return table("Versions", "plain",
    h("thead", null, h("tr", null, ["Version", "Seen", "Status", "Progress"].map((name, index) =>
      h("th", { scope: "col", class: index === 3 ? "number" : "" }, name)))),
    h("tbody", null, job.versions.toReversed().map((one) => h("tr", { key: String(one.version) },
      h("td", null, String(one.version)),
      h("td", null, `${time(one.seen)} (${ago(one.seen, state.now)})`),
      h("td", null, words(one.status)),
      h("td", { class: "number" }, `${Math.round(one.progress)}%`)))));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // no JSON: as it is
  }
}
