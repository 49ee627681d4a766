"""The Redis side of a mirror: `session` connects, restores, compares and follows; `capture` turns
changed keys into rows of the store; `connection` is the only file that speaks to Redis."""
