"""What happened: a durable, bounded record, and the timeline of one ID that is read from it.

`recorder` takes events, `store` keeps them, `timeline` joins them, `diagnosis` names the likely
cause.
"""
