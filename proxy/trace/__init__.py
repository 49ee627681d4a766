"""The trace: a durable, bounded record of events, and the timeline of one ID built from it.

`recorder` accepts events, `store` persists them, `timeline` joins them, `diagnosis` finds the
likely cause. Knows the configuration and `core`, and nothing of how the events come about.
"""
