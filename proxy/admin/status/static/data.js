// What the views read beside the stream: one job, one trace, the recent errors. Each is fetched when a
// view wants it and again when it is old; a view draws what is there.

import { get, Refused } from "./api.js";

const AGAIN = 5000; // ms after which what is shown is read again
const AGAIN_IF_MISSING = 30_000; // what is not there now may come
const MOST_JOBS = 8; // of a trace, that are linked
export const MOST_ERRORS = 300; // that are read, to be grouped

/** Things by name: `{document, problem, loading, at}`. */
export class Library {
  constructor(changed) {
    this.changed = changed;
    this.things = new Map();
  }

  /** The thing of that name; `read` is called when there is none or it is old. */
  want(name, read, again = AGAIN) {
    let thing = this.things.get(name);
    if (!thing) {
      thing = { document: null, problem: null, loading: false, at: 0 };
      if (this.things.size > 40) this.things.delete(this.things.keys().next().value);
      this.things.set(name, thing);
    }
    const wait = thing.problem?.status === 404 ? AGAIN_IF_MISSING : again;
    if (!thing.loading && Date.now() - thing.at > wait) this.load(thing, read);
    return thing;
  }

  /** Forget everything: another token, another proxy. */
  clear() {
    this.things.clear();
  }

  async load(thing, read) {
    thing.loading = true;
    try {
      thing.document = await read();
      thing.problem = null;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      thing.problem = error;
      if (error.status === 404) thing.document = null;
    } finally {
      thing.loading = false;
      thing.at = Date.now();
      this.changed();
    }
  }
}

const part = encodeURIComponent;

export function readJob(mirror, id) {
  return get(`/api/jobs/${part(mirror)}/${part(id)}`);
}

export function readErrors() {
  return get(`/api/trace?severity=error&limit=${MOST_ERRORS}`);
}

/** The trace of an ID, null and `why` when nothing is known, and the jobs that it is about:
 * `{trace, why, jobs}`. */
export async function readTrace(id, { traces, mirrors, jobs: { list } }) {
  let trace = null;
  let why = "This proxy keeps no traces.";
  if (traces) {
    try {
      trace = await get(`/api/trace/${part(id)}`);
    } catch (error) {
      if (error.status !== 404) throw error;
      why = error.message;
    }
  }
  const names = mirrors.map((one) => one.mirror);
  const jobs = [];
  for (const job of trace ? trace.job_ids.slice(0, MOST_JOBS) : [id]) {
    const listed = list.find((one) => one.job_id === job);
    if (listed) jobs.push({ mirror: listed.mirror, job_id: job });
    else if (trace && names.length === 1) jobs.push({ mirror: names[0], job_id: job });
    else jobs.push(...(await holders(job, names)));
  }
  return { trace, why, jobs };
}

async function holders(job, mirrors) {
  const found = [];
  for (const mirror of mirrors) {
    if (await missing(readJob(mirror, job))) found.push({ mirror, job_id: job });
  }
  return found;
}

/** null for a 404. */
async function missing(reading) {
  try {
    return await reading;
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}
