// Numbers, times and durations as people read them.

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

export const DASH = "–";

/** Requests per second: `0`, `0.2/s`, `13/s`. */
export function rate(value) {
  if (!value) return "0/s";
  if (value < 0.095) return "<0.1/s";
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en")}/s`;
}

/** A latency in seconds, three digits at most: `840 µs`, `4.2 ms`, `1.25 s`. */
export function latency(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${digits(seconds * 1000)} ms`;
  if (seconds < 100) return `${digits(seconds)} s`;
  return span(seconds);
}

function digits(value) {
  if (value >= 99.5) return Math.round(value).toString();
  return value >= 9.95 ? value.toFixed(1) : value.toFixed(2);
}

/** A share of 0 to 1: `0%`, `0.4%`, `37%`. */
export function share(value) {
  if (!value) return "0%";
  const percent = value * 100;
  if (percent < 0.1) return "<0.1%";
  return percent < 9.95 ? `${percent.toFixed(1)}%` : `${Math.round(percent)}%`;
}

/** A length of time: `0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `4 d`. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 0.0995) return latency(seconds);
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return pair(whole, 60, "min", 1, "s");
  if (whole < 86_400) return pair(whole, 3600, "h", 60, "min");
  return pair(whole, 86_400, "d", 3600, "h");
}

function pair(seconds, big, bigName, small, smallName) {
  const rest = Math.floor((seconds % big) / small);
  return `${Math.floor(seconds / big)} ${bigName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

/** `3 min ago`, from an ISO date and the proxy's time in ms. */
export function ago(iso, now) {
  if (!iso) return DASH;
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (seconds < 2) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** The viewer's own clock: `14:03:21`, with the day where it is not today's. */
export function time(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return DASH;
  const today = new Date().toDateString() === date.toDateString();
  return today ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
}

/** `make_video` and `half_open` as words. */
export function words(token) {
  return sentence(String(token).replaceAll("_", " "));
}

/** What kind of failure a breaker saw: `connect`, `503`, ... */
export function failure(kind) {
  const known = { connect: "no connection", reset: "connection broken", timeout: "no answer in time", slow: "answered too slowly" };
  return /^\d+$/.test(kind) ? `answered ${kind}` : known[kind] ?? words(kind).toLowerCase();
}

/** The first letter large. */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A summary of an event as a person on this page reads it: local times, without the ID that the app
 * puts before its errors, since it stands beside them anyway. */
export function told(summary) {
  const local = summary.replace(/\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, time);
  return local.replace(/\[Job: [^\]]{1,128}\] /g, "");
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}
