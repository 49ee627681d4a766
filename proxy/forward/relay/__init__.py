"""Bytes between a client and its upstream: `request` up, `response` down, `buffering` between."""
