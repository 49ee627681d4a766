"""The tables of the store, as migrations: each tuple takes a file from one version to the next.

`jobs` starts with the columns that external queries rely on; ours follow. Its rows are all jobs
that are not deleted; an expired job stays until retention ends. `versions` holds the previous
values of each job, deflated. `tombstones` lists deleted jobs: a `held` job must not come back, and
the app does not know yet of the deletion of a `pass_on` job.

`pipeline_events` holds each pipeline event once (`video_metrics/events.py`) with its outcome;
`pipeline_totals` what this sidecar has counted, so that counters survive restarts.
"""

from __future__ import annotations

APPLICATION_ID = 0x4A4D4952
"""`PRAGMA application_id`: a file without it is not ours: it is renamed, not written to."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE jobs (
            job_id TEXT PRIMARY KEY,
            status TEXT NOT NULL,
            progress REAL NOT NULL DEFAULT 0.0,
            data TEXT NOT NULL,
            created_at TIMESTAMP NOT NULL,
            updated_at TIMESTAMP NOT NULL,
            completed_at TIMESTAMP,
            expires_at TIMESTAMP,
            captured_at REAL NOT NULL,
            deadline REAL,
            digest BLOB NOT NULL,
            version INTEGER NOT NULL DEFAULT 1
        )""",
        "CREATE INDEX idx_jobs_status ON jobs(status)",
        "CREATE INDEX idx_jobs_created_at ON jobs(created_at DESC)",
        "CREATE INDEX idx_jobs_status_created_at ON jobs(status, created_at DESC)",
        "CREATE INDEX idx_jobs_deadline ON jobs(deadline)",
        """CREATE INDEX idx_jobs_unfinished ON jobs(captured_at)
            WHERE status NOT IN ('completed', 'failed', 'cancelled')""",
        """CREATE TABLE versions (
            job_id TEXT NOT NULL,
            version INTEGER NOT NULL,
            captured_at REAL NOT NULL,
            status TEXT NOT NULL,
            progress REAL NOT NULL,
            digest BLOB NOT NULL,
            data BLOB NOT NULL,
            PRIMARY KEY (job_id, version)
        ) WITHOUT ROWID""",
        """CREATE TABLE tombstones (
            job_id TEXT PRIMARY KEY,
            deleted_at REAL NOT NULL,
            origin TEXT NOT NULL,
            held INTEGER NOT NULL,
            pass_on INTEGER NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX idx_tombstones_deleted_at ON tombstones(deleted_at)",
        "CREATE INDEX idx_tombstones_pass_on ON tombstones(job_id) WHERE pass_on = 1",
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        """CREATE TABLE broker_bindings (
            key TEXT NOT NULL, member BLOB NOT NULL, PRIMARY KEY (key, member)
        ) WITHOUT ROWID""",
        """CREATE TABLE broker_messages (
            tag BLOB PRIMARY KEY,
            place TEXT NOT NULL,
            queue TEXT NOT NULL,
            position INTEGER NOT NULL,
            job_ids TEXT NOT NULL,
            message BLOB NOT NULL
        ) WITHOUT ROWID""",
    ),
    (
        # outcome: 0 pending, 1 counted here, 2 counted by another sidecar, 3 too old to count
        """CREATE TABLE pipeline_events (
            job_id TEXT NOT NULL,
            event TEXT NOT NULL,
            family TEXT NOT NULL,
            labels TEXT NOT NULL,
            value REAL NOT NULL,
            at REAL NOT NULL,
            due REAL NOT NULL,
            sure INTEGER NOT NULL,
            outcome INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (job_id, event)
        ) WITHOUT ROWID""",
        "CREATE INDEX idx_pipeline_pending ON pipeline_events(due) WHERE outcome = 0",
        "CREATE TABLE pipeline_totals (series TEXT PRIMARY KEY, total TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        # The answers to idempotent creations (`idempotency/`); `record` is JSON.
        """CREATE TABLE answers (
            record_id TEXT PRIMARY KEY, record BLOB NOT NULL, expires_at REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX idx_answers_expires_at ON answers(expires_at)",
    ),
    (
        "DROP TABLE broker_messages",
        # A job's last known message and its worker. `kind` names the job's inputs.
        """CREATE TABLE job_messages (
            job_id TEXT PRIMARY KEY,
            queue TEXT NOT NULL,
            task_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            message BLOB NOT NULL,
            node TEXT,
            pid INTEGER,
            seen_at REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX idx_job_messages_shape ON job_messages(kind, seen_at)",
    ),
    (
        """CREATE INDEX idx_jobs_active ON jobs(deadline, status)
            WHERE status NOT IN ('completed', 'failed', 'cancelled')""",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN first_seen REAL NOT NULL DEFAULT 0",
        # For older rows: the time of the first version, or the job's own creation time if earlier.
        """UPDATE jobs SET first_seen = min(
             coalesce((SELECT v.captured_at FROM versions AS v
                        WHERE v.job_id = jobs.job_id AND v.version = 1), captured_at),
             coalesce(CAST(strftime('%s', created_at) AS REAL), captured_at))""",
        "CREATE INDEX idx_jobs_first_seen ON jobs(first_seen DESC, created_at DESC)",
        """CREATE INDEX idx_jobs_status_first_seen
            ON jobs(status, first_seen DESC, created_at DESC)""",
        "DROP INDEX idx_jobs_status_created_at",
    ),
)

SETTINGS = (
    "PRAGMA journal_mode=WAL",
    # FULL: a commit is on the disk, not only in the kernel, when a 202 leaves us.
    "PRAGMA synchronous=FULL",
    "PRAGMA busy_timeout=2000",
    "PRAGMA temp_store=MEMORY",
    # 16 MB of log between two checkpoints, each of which flushes the disk twice; and that is what
    # is left of one that has grown, because somebody was reading for long.
    "PRAGMA wal_autocheckpoint=4096",
    "PRAGMA journal_size_limit=16777216",
)
