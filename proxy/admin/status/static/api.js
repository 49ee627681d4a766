// Requests to the proxy's admin API. The token, where one is needed, lives in this tab alone.

const KEY = "reliability-proxy-token";

export function token() {
  return sessionStorage.getItem(KEY);
}

export function setToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** An answer that is none; `status` 0: the proxy was not reached. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function headers(more = {}) {
  const mine = token();
  return mine ? { ...more, Authorization: `Bearer ${mine}` } : more;
}

/** A response that is ok, or `Refused`. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      ...options, headers: headers(options.headers), cache: "no-store", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The proxy does not answer");
  }
  if (response.ok) return response;
  let detail = `${response.status} ${response.statusText}`;
  try {
    detail = (await response.json()).detail ?? detail;
  } catch {
    // Not one of the proxy's own answers; the status has to do.
  }
  throw new Refused(response.status, detail);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, document) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(document),
  });
  return response.json();
}
