// What stands around every view: the head of the page, the state of the connection, the login.
import { setToken } from "./api.js";
import { h } from "./dom.js";
import { span, time } from "./format.js";
import { glyph, mark } from "./icons.js";

const THEMES = { system: "As the system", light: "Light", dark: "Dark" };

export function header(state, go) {
  const { snapshot } = state;
  return [
    h("div", { class: "brand" },
      h("svg", { class: "logo", viewBox: "0 0 32 32", "aria-hidden": "true" },
        h("rect", { width: "32", height: "32", rx: "8" }),
        h("path", { d: "M5 17h5l3-8 5 14 3-6h6" })),
      h("h1", null, h("a", { href: "/" }, "reliability-proxy")),
      snapshot && h("span", { class: "version" }, `${snapshot.version}, up ${span(snapshot.uptime)}`)),
    h("form", { class: "search", role: "search", onsubmit: (event) => search(event, go) },
      h("label", { class: "visually-hidden", for: "search" }, "Job ID or correlation ID"),
      glyph("search"),
      h("input", { id: "search", type: "search", name: "id", placeholder: "Job ID or correlation ID", autocomplete: "off", spellcheck: "false", maxlength: "128" }),
      h("kbd", { "aria-hidden": "true" }, "/")),
    h("div", { class: "tools" }, live(state), themes(state)),
  ];
}

function search(event, go) {
  event.preventDefault();
  const { id } = event.target.elements;
  const wanted = id.value.trim();
  if (!wanted) return;
  id.value = "";
  go(`/?${new URLSearchParams({ trace: wanted })}`);
}

function live(state) {
  const { link } = state;
  const [tone, word] = state.stale ? ["warning", "Not live"] : {
    live: ["ok", "Live"], connecting: ["muted", "Connecting"], locked: ["muted", "Locked"], paused: ["muted", "Paused"],
  }[link.state] ?? ["warning", "Not live"];
  return h("span", { class: `live ${tone}`, role: "status" }, h("i", { "aria-hidden": "true" }), word);
}

function themes(state) {
  return h("div", { class: "themes", role: "group", "aria-label": "Colours" }, Object.entries(THEMES).map(([name, label]) =>
    h("button", {
      type: "button", title: label, "aria-label": label, "aria-pressed": String(state.theme === name), "data-theme-name": name,
      onclick: () => setTheme(state, name),
    }, glyph(name))));
}

function setTheme(state, name) {
  state.theme = name;
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  try {
    if (name === "system") localStorage.removeItem("theme");
    else localStorage.setItem("theme", name);
  } catch {
    // Storage is switched off: the choice holds for this page alone.
  }
  state.redraw();
}

export function staleBanner(state) {
  if (!state.stale) return null;
  const { link, snapshot } = state;
  const again = link.retryAt ? Math.max(0, Math.round((link.retryAt - Date.now()) / 1000)) : null;
  const next = link.state === "lost" && again !== null ? (again > 0 ? ` Next try in ${again} s.` : " Trying again …") : "";
  return h("div", { class: "notice warning stale", key: "stale" }, mark("warning", "warning"), h("div", { role: "status" },
    h("b", null, link.why ?? "Nothing has come from the proxy for a while"), ". ",
    snapshot && `What you see is from ${time(snapshot.at)}.`,
    h("span", { "aria-hidden": "true" }, next)));
}

/** The form for the bearer token. */
export function login(state, unlock) {
  const submit = (event) => {
    event.preventDefault();
    setToken(event.target.elements.token.value.trim());
    unlock();
  };
  return h("section", { class: "login", key: "login", "aria-labelledby": "login-title" },
    h("h2", { id: "login-title" }, "This page is locked"),
    h("p", null, "The admin API of this proxy asks for a token, ", h("span", { class: "code" }, "admin.token"),
      " in its config. It stays in this tab and is forgotten when the tab is closed."),
    h("form", { onsubmit: submit },
      // Password managers keep a token under a name.
      h("input", { name: "username", autocomplete: "username", value: "admin", hidden: true }),
      h("label", { for: "token" }, "Token"),
      h("input", { id: "token", name: "token", type: "password", required: true, autocomplete: "current-password" }),
      state.refused && h("p", { class: "problem", role: "alert" }, mark("error", "error"), h("span", null, "This is not the token.")),
      h("button", { type: "submit", class: "primary" }, "Unlock")));
}
