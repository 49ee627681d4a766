// The page: what is known, which view is wanted, and drawing it.
//
// One state object; views are functions of it. It is drawn anew when something came, and every second,
// because times pass. The URL is the view: `/?upstream=`, `?route=`, `?job=`, `?trace=`, `?jobs=`.
import { token, setToken } from "./api.js";
import { cover, onPoint } from "./charts.js";
import { Library } from "./data.js";
import { h, render } from "./dom.js";
import { jobPage } from "./jobs.js";
import { overview } from "./overview.js";
import { routePage } from "./routes.js";
import { servicePage } from "./services.js";
import { header, login, staleBanner } from "./shell.js";
import { Stream } from "./stream.js";
import { tracePage } from "./trace.js";

const STALE_AFTER = 4000; // ms without a snapshot
const STEPS = 180; // points kept of each series, as the proxy does

const PAGES = { job: jobPage, trace: tracePage, upstream: servicePage, route: routePage };

let lastJob = { name: null, job: null };
const state = {
  snapshot: null,
  received: 0, // when the snapshot came, by this machine's clock
  now: Date.now(), // the proxy's time, ms
  stale: false,
  link: { state: "connecting" },
  points: new Map(),
  step: 0,
  params: new URLSearchParams(location.search),
  theme: document.documentElement.dataset.theme ?? "system",
  refused: false,
  library: new Library(() => draw()),
  keepJob: (name, job) => { lastJob = { name, job }; },
  lastJob: (name) => (lastJob.name === name ? lastJob.job : null),
  redraw: () => draw(),
  replace: (url) => {
    history.replaceState(null, "", url);
    arrive(true);
  },
};

// --- what comes ----------------------------------------------------------------------------------

const stream = new Stream(
  (kind, document) => {
    if (kind === "open") state.step = 0; // each stream begins with all points
    else if (kind === "points") takePoints(document);
    else if (kind === "snapshot") takeSnapshot(document);
  },
  (link) => {
    if (link.state === "locked") {
      state.refused = token() !== null;
      setToken(null);
      state.snapshot = null;
    }
    state.link = link;
    draw();
  },
);

function takeSnapshot(snapshot) {
  if (state.snapshot && state.snapshot.started !== snapshot.started) state.library.clear();
  state.snapshot = snapshot;
  state.received = Date.now();
  state.refused = false;
  state.link = { state: "live" };
  draw();
}

function takePoints({ last, series }) {
  const begins = state.step === 0;
  const points = new Map();
  for (const [name, more] of Object.entries(series)) {
    const before = begins ? [] : state.points.get(name) ?? [];
    points.set(name, [...before, ...more].slice(-STEPS));
  }
  state.points = points;
  state.step = last;
  cover(last - 1);
}

// --- drawing -------------------------------------------------------------------------------------

let due = 0;

/** Draw soon: several news in one frame are one drawing. */
function draw() {
  due ||= requestAnimationFrame(drawNow);
}

function drawNow() {
  due = 0;
  const age = Date.now() - state.received;
  state.stale = state.snapshot !== null && (state.link.state === "lost" || age > STALE_AFTER);
  if (state.snapshot) state.now = Date.parse(state.snapshot.at) + age;
  document.documentElement.classList.toggle("is-stale", state.stale);
  render(document.getElementById("top"), header(state, go));
  render(document.getElementById("main"), view());
  document.title = title();
  askForToken();
  settle();
}

let asked = false;

/** Once a token is wanted, typing goes into its field; somebody who is elsewhere by then is left alone. */
function askForToken() {
  const locked = state.link.state === "locked";
  if (locked && !asked) document.getElementById("token").focus();
  asked = locked;
}

function view() {
  if (state.link.state === "locked") return login(state, unlock);
  if (!state.snapshot) {
    const why = state.link.state === "lost" ? `${state.link.why}. Trying again …` : "Connecting …";
    return h("p", { class: "waiting", key: "waiting", role: "status" }, why);
  }
  const [kind, name] = wanted();
  const drawn = kind ? PAGES[kind](state, name) : overview(state);
  return [staleBanner(state), h("div", { class: `view ${kind ? "single" : "overview"}`, key: `${kind} ${name}` }, drawn)];
}

/** The page that the URL names, or none: the overview. */
function wanted() {
  for (const kind in PAGES) {
    const name = state.params.get(kind);
    if (name) return [kind, name];
  }
  return [null, null];
}

function title() {
  const [kind, name] = wanted();
  if (kind) return `${name} – reliability-proxy`;
  if (!state.snapshot || state.stale) return "Status – reliability-proxy";
  const { level, sentence } = state.snapshot.health;
  return `${level === "ok" ? "" : "▲ "}${sentence.replace(/\.$/, "")} – reliability-proxy`;
}

// --- moving --------------------------------------------------------------------------------------

let arriving = false;

/** Go to another view of this page. */
function go(url, stay = false) {
  history.pushState(null, "", url);
  arrive(stay);
}

function arrive(stay) {
  state.params = new URLSearchParams(location.search);
  if (!stay) arriving = true;
  draw();
}

/** After a move: the new view's title has the focus, so that the keyboard and readers go on there. */
function settle() {
  if (!arriving || !state.snapshot) return;
  arriving = false;
  scrollTo(0, 0);
  (document.querySelector(".page-title") ?? document.getElementById("main")).focus({ preventScroll: true });
}

function jump(target) {
  const there = document.getElementById(target);
  if (!there) return;
  there.scrollIntoView({ block: "center" });
  if (!there.hasAttribute("tabindex")) there.setAttribute("tabindex", "-1");
  there.focus({ preventScroll: true });
}

function unlock() {
  state.refused = false;
  state.library.clear();
  stream.start();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const href = link.getAttribute("href");
  if (link.dataset.jump !== undefined) {
    event.preventDefault();
    jump(href.slice(1));
  } else if (href === "/" || href.startsWith("/?")) {
    event.preventDefault();
    go(href, link.dataset.stay !== undefined);
  }
});

addEventListener("popstate", () => arrive(false));

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("search")?.focus();
  }
});

onPoint(draw);
setInterval(draw, 1000);
stream.start();
draw();
