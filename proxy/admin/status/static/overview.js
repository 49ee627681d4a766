// The first view: health in one sentence, then everything from the most to the least urgent.
import { h } from "./dom.js";
import { ago, latency, plural, words } from "./format.js";
import { mark } from "./icons.js";
import { errorsSection } from "./trace.js";
import { jobsSection } from "./jobs.js";
import { badge, facts, section } from "./parts.js";
import { routesSection } from "./routes.js";
import { servicesSection } from "./services.js";

const SHOWN = 5; // findings

export function overview(state) {
  return [health(state), servicesSection(state), jobsSection(state), routesSection(state), errorsSection(state), storesSection(state)];
}

function health(state) {
  const { level, sentence, findings } = state.snapshot.health;
  return h("section", { class: `health ${level}`, id: "health", "aria-labelledby": "health-title" },
    h("h2", { class: "visually-hidden", id: "health-title" }, "Health"),
    h("p", { class: "sentence", role: "status" }, mark(level, level), findings.length ? h("a", where(findings[0].about), sentence) : h("span", null, sentence)),
    findings.length > 1 && h("ul", { class: "findings" },
      findings.slice(0, SHOWN).map((one) => h("li", { key: `${one.kind} ${one.about}` },
        mark(one.level, one.level), h("a", where(one.about), one.summary)))),
    findings.length > SHOWN && h("p", { class: "note" }, `and ${findings.length - SHOWN} more below`));
}

/** Where a finding leads. */
function where(about) {
  const colon = about.indexOf(":");
  const [kind, name] = colon < 0 ? [about, ""] : [about.slice(0, colon), about.slice(colon + 1)];
  if (["upstream", "route", "job"].includes(kind)) return { href: `/?${new URLSearchParams({ [kind]: name })}` };
  return { href: kind === "jobs" ? "#jobs" : "#stores", "data-jump": "" };
}

function storesSection(state) {
  const { mirrors, redis, process } = state.snapshot;
  return section("stores", "Stores and process", null, h("div", { class: "cards stores" },
    mirrors.map((mirror) => mirrorCard(state, mirror)),
    h("article", { class: "card", key: "process" },
      h("div", { class: "card-head" }, h("h3", null, "This proxy"),
        state.snapshot.state === "serving" ? badge("ok", "ok", "Serving") : badge("warning", "warning", words(state.snapshot.state))),
      facts([
        ["Circuits", redis.breakers === null ? "decided here alone, no Redis configured" : redis.breakers ? "shared through Redis" : "decided here alone, Redis is away"],
        ["Event loop late by", process.loop_lag_p99 === null ? null : `${latency(process.loop_lag_p99)} (P99)`],
        ["Processor", process.cpu === null ? null : `${Math.round(process.cpu * 100)} % of a core`],
        ["Memory", process.memory === null ? null : `${Math.round(process.memory / 2 ** 20)} MiB`],
        ["File descriptors", process.descriptors === null ? null
          : `${process.descriptors.toLocaleString("en")} of ${process.descriptors_most.toLocaleString("en")}`],
        ["Connections of clients", process.client_connections.toLocaleString("en")],
        ["Disks", disks(state.snapshot.disks)],
        ["Config", process.reload_problem && `the last one was refused: ${process.reload_problem}`],
        ...(state.snapshot.certificates || []).map((one) => [
          `Certificate of ${one.listener}`, one.days > 0 ? `${Math.floor(one.days)} days left` : "expired"]),
        ["Log lines lost", process.log_lines_dropped ? process.log_lines_dropped.toLocaleString("en") : "none"],
      ]))));
}

/** Those with the least room, as far as that is worth a word. */
function disks(all) {
  const low = all.filter((one) => one.free < 0.2 * one.size).toSorted((one, other) => one.free / one.size - other.free / other.size);
  return low.length ? low.map((one) => `${one.directory} ${Math.round((100 * one.free) / one.size)} % free`).join(", ")
    : all.length ? "more than 20 % free" : null;
}

function mirrorCard(state, mirror) {
  const redis = mirror.redis === "live";
  const sqlite = mirror.sqlite === "ok";
  const well = redis && sqlite && mirror.writes === "ok";
  const { last_restore: restore } = mirror;
  return h("article", { class: `card ${well ? "" : "error"}`, key: mirror.mirror },
    h("div", { class: "card-head" }, h("h3", null, `Jobs of ${mirror.mirror}`),
      well ? badge("ok", "ok", "Mirrored") : badge("error", "error", "Degraded")),
    facts([
      ["Redis", h("span", null, redis ? badge("ok", "ok", "Live") : badge("error", "error", words(mirror.redis)),
        mirror.reason && h("span", { class: "note" }, ` ${mirror.reason}`))],
      ["SQLite", h("span", null, sqlite ? badge("ok", "ok", "Writing") : badge("error", "error", "Cannot write"),
        mirror.sqlite_reason && h("span", { class: "note" }, ` ${mirror.sqlite_reason}`))],
      ["Waiting to be written", mirror.backlog ? plural(mirror.backlog, "change") : null],
      ["Last compared in full", mirror.last_sync ? ago(mirror.last_sync, state.now) : "not yet"],
      ["Last restore", restore && `${plural(restore.restored, "job")} put back (${words(restore.cause).toLowerCase()})`],
      ["Redis refuses writes", mirror.writes === "ok" ? null : mirror.writes],
      ["Missing rights", mirror.missing_rights.length ? mirror.missing_rights.join("; ") : null],
      ["Obstacle", mirror.obstacle],
      ["Changes seen", mirror.captured.toLocaleString("en")],
    ]));
}
