"""Every statement that the store runs.

`deflate` is a function that the connection provides. Text times are in SQLite's format in UTC;
`captured_at`, `first_seen` and `deadline` are Unix seconds by our clock. `deadline` is when the key
expires, NULL if never. Lists are ordered by `first_seen`, because `created_at` comes from the app,
whose clock may differ.
"""

from __future__ import annotations

# --- writing ------------------------------------------------------------------------------------

_ADD_EVENTS = """INSERT INTO pipeline_events
           (job_id, event, family, labels, value, at, due, sure)
       SELECT :job_id, json_extract(j.value, '$[0]'), json_extract(j.value, '$[1]'),
              json_extract(j.value, '$[2]'), json_extract(j.value, '$[3]'),
              json_extract(j.value, '$[4]'), json_extract(j.value, '$[5]'),
              json_extract(j.value, '$[6]')
         FROM json_each(:events) AS j
        WHERE {allowed}
          AND (SELECT count(*) FROM pipeline_events WHERE job_id = :job_id) < :most_events
       ON CONFLICT (job_id, event) DO UPDATE SET
         labels = excluded.labels, sure = excluded.sure, due = min(due, excluded.due)
        WHERE outcome = 0 AND excluded.sure > sure"""

PUT = (
    """INSERT INTO jobs (job_id, status, progress, data, created_at, updated_at, completed_at,
                          expires_at, captured_at, deadline, digest, first_seen)
       SELECT :job_id, :status, :progress, :data, :created_at, :updated_at, :completed_at,
              :expires_at, :captured_at, :deadline, :digest, :first_seen
        WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE job_id = :job_id AND held = 1)
       ON CONFLICT (job_id) DO UPDATE SET
         version = version + (digest <> excluded.digest),
         captured_at = iif(digest <> excluded.digest, excluded.captured_at, captured_at),
         updated_at = iif(digest <> excluded.digest, excluded.updated_at, updated_at),
         status = excluded.status, progress = excluded.progress, data = excluded.data,
         created_at = excluded.created_at, completed_at = excluded.completed_at,
         expires_at = excluded.expires_at, deadline = excluded.deadline,
         digest = excluded.digest""",
    "DELETE FROM tombstones WHERE job_id = :job_id AND held = 0",
    """INSERT OR IGNORE INTO versions (job_id, version, captured_at, status, progress, digest, data)
       SELECT job_id, version, captured_at, status, progress, digest, deflate(data)
         FROM jobs WHERE job_id = :job_id AND digest = :digest""",
    """DELETE FROM versions WHERE job_id = :job_id AND version <=
         (SELECT version FROM jobs WHERE job_id = :job_id) - :keep_versions""",
    # In the same transaction as the version, so that neither exists without the other, and only if
    # the version was stored.
    _ADD_EVENTS.format(
        allowed="EXISTS (SELECT 1 FROM jobs WHERE job_id = :job_id AND digest = :digest)"
    ),
)

# An event that does not come from the job's document; none for a deleted job.
ADD_EVENTS = (_ADD_EVENTS.format(allowed="EXISTS (SELECT 1 FROM jobs WHERE job_id = :job_id)"),)

MARK_DELETED = (
    """INSERT INTO tombstones (job_id, deleted_at, origin, held, pass_on)
       VALUES (:job_id, :deleted_at, :origin, :held, :pass_on)
       ON CONFLICT (job_id) DO UPDATE SET
         origin = iif(held >= excluded.held, origin, excluded.origin),
         held = max(held, excluded.held), pass_on = max(pass_on, excluded.pass_on)""",
    "DELETE FROM jobs WHERE job_id = :job_id",
)

PASSED_ON = ("UPDATE tombstones SET pass_on = 0 WHERE job_id = :job_id",)

SET_META = ("INSERT OR REPLACE INTO meta (name, value) VALUES (:name, :value)",)

FORGET = (
    "DELETE FROM versions WHERE job_id = :job_id",
    "DELETE FROM pipeline_events WHERE job_id = :job_id",
    "DELETE FROM job_messages WHERE job_id = :job_id",
    "DELETE FROM jobs WHERE job_id = :job_id AND deadline < :before",
    "DELETE FROM tombstones WHERE job_id = :job_id AND deleted_at < :before",
)

ADD_BINDING = ("INSERT OR IGNORE INTO broker_bindings (key, member) VALUES (:key, :member)",)
PUT_MESSAGE = (
    """INSERT OR REPLACE INTO job_messages
         (job_id, queue, task_id, kind, message, node, pid, seen_at)
       SELECT :job_id, :queue, :task_id, :kind, :message, :node, :pid, :seen_at
        WHERE EXISTS (SELECT 1 FROM jobs WHERE job_id = :job_id)""",
)

PUT_ANSWER = (
    """INSERT OR REPLACE INTO answers (record_id, record, expires_at)
       VALUES (:id, :record, :expires_at)""",
    # A few per insert, so that expired records do not stay for long.
    """DELETE FROM answers WHERE record_id IN
         (SELECT record_id FROM answers WHERE expires_at <= :now LIMIT 10)""",
)
DROP_ANSWER = ("DELETE FROM answers WHERE record_id = :id",)

SETTLE = (
    """UPDATE pipeline_events SET outcome = json_extract(j.value, '$[2]')
         FROM json_each(:settled) AS j
        WHERE job_id = json_extract(j.value, '$[0]') AND event = json_extract(j.value, '$[1]')
          AND outcome = 0""",
    """INSERT OR REPLACE INTO pipeline_totals (series, total)
       SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:totals)""",
)

# --- reading ------------------------------------------------------------------------------------

_ROW = """job_id, status, progress, data, created_at, captured_at, deadline, digest, version,
          first_seen"""

#: The same for lists, with documents of limited length: one may be a megabyte.
_SHORT = """job_id, status, progress,
            CASE WHEN :longest > 0 AND length(data) <= :longest THEN data ELSE '' END,
            created_at, captured_at, deadline, digest, version, first_seen"""

GET = f"SELECT {_ROW} FROM jobs WHERE job_id = ?"  # noqa: S608 (a constant)
GET_TOMBSTONE = "SELECT deleted_at, origin, held, pass_on FROM tombstones WHERE job_id = ?"

HEADS = """SELECT j.value, jobs.digest, jobs.deadline, t.held, t.pass_on, jobs.first_seen
             FROM json_each(?) AS j
             LEFT JOIN jobs ON jobs.job_id = j.value
             LEFT JOIN tombstones AS t ON t.job_id = j.value"""

WAS_VERSION = "SELECT 1 FROM versions WHERE job_id = ? AND digest = ? LIMIT 1"

LIVE_PAGE = f"""SELECT {_ROW} FROM jobs
                 WHERE job_id > ? AND (deadline IS NULL OR deadline > ?)
                 ORDER BY job_id LIMIT ?"""  # noqa: S608

LIVE_IDS = """SELECT job_id FROM jobs
               WHERE job_id > ? AND (deadline IS NULL OR deadline > ?)
               ORDER BY job_id LIMIT ?"""

LIST = f"""SELECT {_SHORT} FROM jobs
            WHERE (deadline IS NULL OR deadline > :now)
            ORDER BY first_seen DESC, created_at DESC LIMIT :most"""  # noqa: S608

LIST_STATUS = f"""SELECT {_SHORT} FROM jobs
                   WHERE status = :status AND (deadline IS NULL OR deadline > :now)
                   ORDER BY first_seen DESC, created_at DESC LIMIT :most"""  # noqa: S608

# The length of their documents in bytes.
_SIZE = "job_id, length(CAST(data AS BLOB))"
SIZES = LIST.replace(_SHORT, _SIZE)
SIZES_STATUS = LIST_STATUS.replace(_SHORT, _SIZE)

WHOLE = f"""SELECT {_ROW} FROM jobs WHERE job_id IN (SELECT value FROM json_each(:job_ids))
            ORDER BY first_seen DESC, created_at DESC"""  # noqa: S608

STRANDED = f"""SELECT {_SHORT} FROM jobs
                WHERE status NOT IN ('completed', 'failed', 'cancelled')
                  AND captured_at < :since AND (deadline IS NULL OR deadline > :now)
                ORDER BY captured_at LIMIT :most"""  # noqa: S608

SHORT = f"""SELECT {_SHORT} FROM jobs
             WHERE job_id IN (SELECT value FROM json_each(:job_ids))"""  # noqa: S608

# Newest first; documents only until their stored size reaches a total of so many bytes.
VERSIONS = """SELECT version, captured_at, status, progress,
                     CASE WHEN sum(length(data)) OVER newer <= :most
                            OR row_number() OVER newer = 1 THEN data END
                FROM versions WHERE job_id = :job_id
              WINDOW newer AS (ORDER BY version DESC)
               ORDER BY version DESC"""

FIRST_VERSION = "SELECT status, data FROM versions WHERE job_id = ? ORDER BY version LIMIT 1"

# Jobs that may have been worked on between two times. A job that has only ever waited was not; a
# finished one was created within the two days that a key can live. We capture a job a few
# milliseconds after its creation, and its worker's first call may end before that: so the app's
# creation time counts here.
WORKED_ON = """SELECT job_id FROM jobs INDEXED BY idx_jobs_unfinished
                WHERE status NOT IN ('completed', 'failed', 'cancelled')
                  AND (first_seen <= :end OR (first_seen <= :end + 60 AND created_at <= :end_at))
                  AND (status NOT IN ('queued', 'pending') OR version > 1)
               UNION ALL
               SELECT job_id FROM jobs
                WHERE first_seen BETWEEN :earliest AND :end + 60 AND captured_at >= :start
                  AND (first_seen <= :end OR created_at <= :end_at)
                  AND status IN ('completed', 'failed', 'cancelled')
               LIMIT :most"""
DELETED_SINCE = """SELECT job_id,
                     (SELECT min(captured_at) FROM versions WHERE job_id = tombstones.job_id),
                     (SELECT max(captured_at) FROM versions WHERE job_id = tombstones.job_id)
                     FROM tombstones WHERE deleted_at >= ? LIMIT ?"""

COUNT = "SELECT count(*) FROM jobs"
UNNOTIFIED = "SELECT job_id FROM tombstones WHERE pass_on = 1 ORDER BY job_id LIMIT ?"
HELD = "SELECT job_id FROM tombstones WHERE held = 1 ORDER BY deleted_at DESC LIMIT ?"
META = "SELECT name, value FROM meta"

# UNION ALL, because a UNION would sort everything before the first row. A duplicate is harmless.
OUTLIVED = """SELECT job_id FROM jobs WHERE deadline < :before
              UNION ALL SELECT job_id FROM tombstones WHERE deleted_at < :before LIMIT :limit"""

PENDING = """SELECT job_id, event, family, labels, value, at, due FROM pipeline_events
              WHERE outcome = 0 AND due <= ? ORDER BY due LIMIT ?"""
SETTLED = """SELECT job_id, event FROM pipeline_events
              WHERE (job_id, event) > (?, ?) AND outcome IN (1, 2) AND at > ?
              ORDER BY job_id, event LIMIT ?"""
PENDING_COUNT = "SELECT count(*) FROM pipeline_events WHERE outcome = 0"
TOTALS = "SELECT series, total FROM pipeline_totals"
# Both counts come from the index alone.
ACTIVE = """SELECT (SELECT count(*) FROM jobs INDEXED BY idx_jobs_active
                     WHERE status NOT IN ('completed', 'failed', 'cancelled') AND deadline > ?)
                 + (SELECT count(*) FROM jobs INDEXED BY idx_jobs_active
                     WHERE status NOT IN ('completed', 'failed', 'cancelled')
                       AND deadline IS NULL)"""

BEING_WORKED_ON = """SELECT job_id, status FROM jobs INDEXED BY idx_jobs_unfinished
                      WHERE status NOT IN ('completed', 'failed', 'cancelled')
                        AND status NOT IN ('queued', 'pending') AND captured_at > ? LIMIT 1000"""

# What the queue is rebuilt from after a start: the last completed jobs, oldest first, and then the
# unfinished jobs.
QUEUE_HISTORY = """SELECT job_id, data, captured_at FROM (
                     SELECT job_id, data, captured_at, first_seen FROM jobs
                      WHERE status = 'completed' ORDER BY first_seen DESC LIMIT ?)
                    ORDER BY first_seen"""
QUEUE_UNFINISHED = """SELECT job_id, data, captured_at FROM jobs INDEXED BY idx_jobs_unfinished
                       WHERE status NOT IN ('completed', 'failed', 'cancelled')
                         AND (deadline IS NULL OR deadline > ?)
                       ORDER BY captured_at DESC LIMIT ? OFFSET ?"""

GET_ANSWER = "SELECT record FROM answers WHERE record_id = ? AND expires_at > ?"

CREATED_SINCE = f"""SELECT {_SIZE} FROM jobs
                    WHERE first_seen >= :earliest
                      AND (SELECT min(captured_at) FROM versions
                            WHERE versions.job_id = jobs.job_id) >= :since
                    LIMIT :most"""  # noqa: S608
DOCUMENTS = """SELECT job_id, data FROM jobs
                WHERE job_id IN (SELECT value FROM json_each(?))"""

BINDINGS = "SELECT key, member FROM broker_bindings"
_MESSAGE = "job_id, queue, task_id, kind, message, node, pid, seen_at"
MESSAGES_OF = f"""SELECT {_MESSAGE} FROM job_messages
                   WHERE job_id IN (SELECT value FROM json_each(?))"""  # noqa: S608
SHAPES = f"""SELECT {_MESSAGE} FROM job_messages
              WHERE kind = ? ORDER BY seen_at DESC LIMIT 8"""  # noqa: S608
STATUSES = """SELECT job_id, status FROM jobs
               WHERE job_id IN (SELECT value FROM json_each(?))"""
# Oldest change first: the job that has waited longest comes first.
UNFINISHED = """SELECT job_id, status, captured_at FROM jobs INDEXED BY idx_jobs_unfinished
                 WHERE status NOT IN ('completed', 'failed', 'cancelled')
                   AND (deadline IS NULL OR deadline > ?)
                 ORDER BY captured_at LIMIT ?"""

#: Reads that a request waits for. All others are surveys and must not delay these.
ANSWERS = frozenset(
    {
        GET,
        GET_TOMBSTONE,
        HEADS,
        WAS_VERSION,
        LIST,
        LIST_STATUS,
        SIZES,
        SIZES_STATUS,
        WHOLE,
        SHORT,
        VERSIONS,
        FIRST_VERSION,
        GET_ANSWER,
        CREATED_SINCE,
        DOCUMENTS,
        BEING_WORKED_ON,
        QUEUE_HISTORY,
        QUEUE_UNFINISHED,
    }
)
