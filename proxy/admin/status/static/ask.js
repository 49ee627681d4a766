// The question before something is changed by hand (a circuit, a job), and what became of it.
import { post, Refused } from "./api.js";
import { h, render } from "./dom.js";
import { time } from "./format.js";
import { mark } from "./icons.js";

const ACTIONS = {
  open: {
    title: "Open the circuit of", verb: "Open circuit", tone: "danger", lasts: true,
    meaning: "Every call to it is refused at once, in all proxies that share this Redis, until the time is over. Then a few calls are let through to see whether it is well.",
  },
  close: {
    title: "Close the circuit of", verb: "Close circuit", tone: "", lasts: true,
    meaning: "Every call passes and failures are not watched until the time is over: what is behind is no longer protected.",
  },
  reset: {
    title: "Reset the circuit of", verb: "Reset circuit", tone: "", lasts: false,
    meaning: "The circuit is closed, its failures are forgotten, and it is watched as usual from now on.",
  },
  requeue: {
    title: "Start again: job", verb: "Start again", tone: "", lasts: false, forced: true,
    meaning: "The job is given a Celery message again, so that the next free worker takes it. Refused while it may be worked on, as two workers would be at it.",
    path: (name) => `/api/jobs/${name.split("/").map(encodeURIComponent).join("/")}/requeue`,
    done: (answer) => `Job ${answer.job_id} is in the queue again (${answer.evidence}).`,
  },
};
const DURATIONS = { "1m": "1 minute", "5m": "5 minutes", "10m": "10 minutes", "30m": "30 minutes", "1h": "1 hour", "4h": "4 hours" };
const SAID_FOR = 10_000; // ms

let hush = 0;

/** Say a sentence at the page's foot, where screen readers hear it too. */
export function say(text, tone = "ok") {
  clearTimeout(hush);
  const box = document.getElementById("said");
  render(box, h("p", { class: `toast ${tone}` }, mark(tone, tone), h("span", null, text)));
  hush = setTimeout(() => render(box, []), SAID_FOR);
}

/** Ask about `action` on the breaker, or on the job MIRROR/ID, `name`; do it when told to. */
export function ask(name, action) {
  const dialog = document.getElementById("ask");
  let working = false;
  let problem = null;

  const draw = () => render(dialog, form());
  const form = () => {
    const about = ACTIONS[action];
    return h("form", { key: `${action} ${name}`, method: "dialog", onsubmit: submit, autocomplete: "off" },
      h("h2", { id: "ask-title" }, `${about.title} `, h("span", { class: "code" }, name), "?"),
      h("p", null, about.meaning),
      h("label", { for: "ask-reason" }, "Reason ", h("span", { class: "note" }, "shown to everybody who looks, and in the log")),
      h("input", { id: "ask-reason", name: "reason", maxlength: "200", placeholder: "by hand", autofocus: true }),
      about.lasts && h("label", { for: "ask-for" }, "For"),
      about.lasts && h("select", { id: "ask-for", name: "for" },
        Object.entries(DURATIONS).map(([value, label]) => h("option", { value, selected: value === "10m" }, label))),
      about.forced && h("label", { class: "check", for: "ask-force" },
        h("input", { id: "ask-force", name: "force", type: "checkbox" }), " Even without proof: I have seen that no worker is at it"),
      problem && h("p", { class: "problem", role: "alert" }, mark("error", "error"), h("span", null, problem)),
      h("div", { class: "buttons" },
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        h("button", { type: "submit", class: `primary ${about.tone}`, disabled: working }, working ? "Working …" : about.verb)));
  };

  async function submit(event) {
    event.preventDefault();
    const { reason, for: lasts, force } = event.target.elements;
    const about = ACTIONS[action];
    working = true;
    problem = null;
    draw();
    try {
      const why = reason.value.trim() || (about.forced ? "by hand" : "");
      const body = { ...(why && { reason: why }), ...(lasts && { for: lasts.value }), ...(force && { force: force.checked }) };
      const path = about.path?.(name) ?? `/api/breakers/${encodeURIComponent(name)}/${action}`;
      const answer = await post(path, body);
      dialog.close();
      say((about.done ?? done)(answer));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      working = false;
      problem = `Not done: ${error.message}`;
      draw();
    }
  }

  const back = document.activeElement;
  // The event comes after the browser's own return of the focus: by then it may have moved on.
  dialog.onclose = () => { if (document.activeElement === document.body) back?.focus(); };
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  draw();
  dialog.showModal();
}

function done(breaker) {
  const word = { forced_open: "open by hand", forced_closed: "closed by hand", closed: "closed and watched again" };
  const until = breaker.until && breaker.state !== "closed" ? ` until ${time(breaker.until)}` : "";
  const where = breaker.shared ? "" : ", in this proxy alone";
  return `${breaker.name} is ${word[breaker.state] ?? breaker.state}${until}${where}.`;
}
