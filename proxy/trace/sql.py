"""Every statement that the trace runs, and its migrations.

`id` is in microseconds since 1970, made unique and increasing by the recording process: it orders
events as they were recorded and shows their age. `severity` is 0 ok, 1 warning, 2 error; `facts` is
JSON. `lane` groups events that share a limit: a route's events of one kind, or a source. Times and
durations are in seconds.
"""

from __future__ import annotations

from proxy.core.sqlite.file import Schema

_MIGRATIONS = (
    (
        """CREATE TABLE events (
            id INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            source TEXT NOT NULL,
            kind TEXT NOT NULL,
            severity INTEGER NOT NULL,
            correlation_id TEXT,
            job_id TEXT,
            service TEXT,
            duration REAL,
            facts TEXT NOT NULL
        )""",
        """CREATE INDEX idx_events_correlation_id ON events(correlation_id, id)
            WHERE correlation_id IS NOT NULL""",
        "CREATE INDEX idx_events_job_id ON events(job_id, id) WHERE job_id IS NOT NULL",
        "CREATE INDEX idx_events_trouble ON events(id) WHERE severity > 0",
        "CREATE INDEX idx_events_errors ON events(id) WHERE severity > 1",
        """CREATE INDEX idx_events_news ON events(id)
            WHERE source IN ('breaker', 'restore', 'mirror', 'proxy')""",
        "CREATE INDEX idx_events_calls ON events(service, id) WHERE source = 'exchange'",
    ),
    (
        "ALTER TABLE events ADD COLUMN lane TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX idx_events_lane ON events(lane, id)",
    ),
)

SCHEMA = Schema(
    application_id=0x54524345,
    migrations=_MIGRATIONS,
    # Allows freed pages to be returned to the disk; must be set before any table exists.
    birth=("PRAGMA auto_vacuum=INCREMENTAL",),
    settings=(
        "PRAGMA journal_mode=WAL",
        # What a crash of the machine takes is a fraction of a second of a record: no flush per
        # commit, and never a damaged file.
        "PRAGMA synchronous=NORMAL",
        "PRAGMA busy_timeout=2000",
        "PRAGMA journal_size_limit=4194304",
        "PRAGMA wal_autocheckpoint=500",
        "PRAGMA temp_store=MEMORY",
    ),
    readers=1,
    surveyors=0,
    read_timeout=5.0,  # people wait for it, no request does
)

NEWS_SOURCES = ("breaker", "restore", "mirror", "proxy")

_COLUMNS = "id, at, source, kind, severity, correlation_id, job_id, service, duration, facts"
NAMES = tuple(_COLUMNS.split(", "))

# Another process that records into the same file may have made the same number.
ADD = (
    f"""INSERT OR IGNORE INTO events ({_COLUMNS}, lane) VALUES (:id, :at, :source, :kind,
        :severity, :correlation_id, :job_id, :service, :duration, :facts, :lane)""",  # noqa: S608 (a constant)
)

OUTLIVED = ("DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < :before LIMIT 2000)",)
OLDEST = (
    """DELETE FROM events WHERE id IN
        (SELECT id FROM events WHERE lane = :lane ORDER BY id LIMIT :number)""",
)
LANES = "SELECT lane, count(*) FROM events GROUP BY lane"
GIVE_BACK = "PRAGMA incremental_vacuum(500)"

BY_CORRELATION = f"""SELECT {_COLUMNS} FROM events WHERE correlation_id = ?
                      ORDER BY id DESC LIMIT ?"""  # noqa: S608 (constants)
BY_JOB = f"SELECT {_COLUMNS} FROM events WHERE job_id = ? ORDER BY id DESC LIMIT ?"  # noqa: S608
NEWS = f"""SELECT {_COLUMNS} FROM events WHERE id BETWEEN ? AND ?
             AND source IN ('breaker', 'restore', 'mirror', 'proxy')
           ORDER BY id DESC LIMIT ?"""  # noqa: S608
CALLS = f"""SELECT {_COLUMNS} FROM events WHERE service = ? AND id BETWEEN ? AND ?
              AND source = 'exchange' ORDER BY id DESC LIMIT ?"""  # noqa: S608
RECENT = (
    f"SELECT {_COLUMNS} FROM events ORDER BY id DESC LIMIT ?",  # noqa: S608
    f"SELECT {_COLUMNS} FROM events WHERE severity > 0 ORDER BY id DESC LIMIT ?",  # noqa: S608
    f"SELECT {_COLUMNS} FROM events WHERE severity > 1 ORDER BY id DESC LIMIT ?",  # noqa: S608
)
"""By the least severity wanted."""

USED = """SELECT (SELECT page_count FROM pragma_page_count)
                * (SELECT page_size FROM pragma_page_size)
                - (SELECT freelist_count FROM pragma_freelist_count)
                * (SELECT page_size FROM pragma_page_size)"""
LENGTH = """SELECT (SELECT page_count FROM pragma_page_count)
                  * (SELECT page_size FROM pragma_page_size)"""
OLDEST_ID = "SELECT min(id) FROM events"
