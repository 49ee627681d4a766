// The stream of snapshots, read with fetch: EventSource cannot send a token.
//
// 1. A stream that ends or fails is opened again after 1, 2, 4, ... 30 s, with some jitter; at once when
//    the page comes back into view or the machine online.
// 2. A stream on which nothing came for SILENCE is dead, whatever the connection says.
// 3. A page that nobody sees closes its stream after HIDDEN: then it costs the proxy nothing.

import { Refused, request } from "./api.js";

const FIRST_WAIT = 1000;
const LONGEST_WAIT = 30_000;
const SILENCE = 8000;
const HIDDEN = 60_000;

export class Stream {
  /** `told(kind, document)` for every event, the first of each connection being `open`; `changed(state)` with `{state, retryAt, why}`, where state
   * is `connecting`, `live`, `lost`, `paused` or `locked`. */
  constructor(told, changed) {
    this.told = told;
    this.changed = changed;
    this.failures = 0;
    this.attempt = null;
    this.timer = 0;
    this.hiding = 0;
    document.addEventListener("visibilitychange", () => this.seen());
    addEventListener("online", () => this.hurry());
  }

  start() {
    clearTimeout(this.timer);
    this.attempt?.abort();
    const attempt = (this.attempt = new AbortController());
    if (this.failures === 0) this.changed({ state: "connecting" });
    this.read(attempt).then(
      () => this.lost(attempt, new Refused(0, "The proxy closed the stream")),
      (error) => this.lost(attempt, error),
    );
  }

  hurry() {
    if (this.timer) this.start();
  }

  seen() {
    clearTimeout(this.hiding);
    if (document.visibilityState === "visible") {
      if (this.paused) this.failures = 0;
      if (this.paused || this.timer) this.start();
      this.paused = false;
    } else {
      this.hiding = setTimeout(() => this.pause(), HIDDEN);
    }
  }

  pause() {
    this.paused = true;
    clearTimeout(this.timer);
    this.timer = 0;
    const attempt = this.attempt;
    this.attempt = null;
    attempt?.abort();
    this.changed({ state: "paused" });
  }

  lost(attempt, error) {
    if (attempt !== this.attempt) return; // an attempt that another one has replaced
    this.attempt = null;
    attempt.abort();
    if (error.status === 401) {
      this.changed({ state: "locked", why: error.message });
      return;
    }
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.failures) * (0.8 + 0.4 * Math.random());
    this.failures += 1;
    this.timer = setTimeout(() => this.start(), wait);
    const why = error.status === 0 || error.status === undefined
      ? "The proxy does not answer" : error.message;
    this.changed({ state: "lost", retryAt: Date.now() + wait, why });
  }

  async read(attempt) {
    this.timer = 0;
    let guard = setTimeout(() => attempt.abort(), SILENCE);
    try {
      const response = await request("/api/status/stream", { signal: attempt.signal });
      this.told("open", null);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const frames = new Frames((kind, data) => {
        if (attempt !== this.attempt) return;
        this.failures = 0;
        this.told(kind, JSON.parse(data));
      });
      for (;;) {
        const { done, value } = await reader.read();
        clearTimeout(guard);
        if (done) return;
        guard = setTimeout(() => attempt.abort(), SILENCE);
        frames.feed(value);
      }
    } finally {
      clearTimeout(guard);
    }
  }
}

/** Splits text into server-sent events: as much of the format as our own server writes. */
export class Frames {
  constructor(told) {
    this.told = told;
    this.rest = "";
  }

  feed(text) {
    const parts = (this.rest + text).split("\n\n");
    this.rest = parts.pop();
    for (const part of parts) {
      let kind = "message";
      let data = "";
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) kind = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) this.told(kind, data);
    }
  }
}
