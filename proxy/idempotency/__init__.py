"""Idempotent creations: the first answer to a key is kept, and every repetition gets it.

Follows draft-ietf-httpapi-idempotency-key-header. `key.py` parses the header and derives the
record's ID, `record.py` is the stored record, `decide.py` decides what a request may do, and
`coordinator.py` acts: claims in Redis, rows in SQLite, waiting callers. The room knows neither
routes nor jobs; `routes/idempotency.py` connects them.
"""
