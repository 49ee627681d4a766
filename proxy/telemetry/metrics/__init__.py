"""The metrics registry and the plain counters of the hot path behind it."""
