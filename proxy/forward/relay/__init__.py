"""Moves bytes between a client and its upstream: `request` up, `response` down, `buffering`
first."""
