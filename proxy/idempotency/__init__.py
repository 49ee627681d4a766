"""Idempotent creations: the first answer to a key is kept, and every repetition gets it.

Follows draft-ietf-httpapi-idempotency-key-header. `key.py` reads the header and names the record,
`record.py` is what is stored, `decide.py` says what a request may do with what was found, and
`coordinator.py` acts: claims in Redis, rows in SQLite, waiting callers. The room knows neither
routes nor jobs; `routes/idempotency.py` brings them together.
"""
