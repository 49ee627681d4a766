"""The metrics registry, and the plain counters of the hot path that it reads."""
