"""The Redis side of a mirror: `session` connects, compares, restores and follows; `capture` turns
changed keys into rows."""
