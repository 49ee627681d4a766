"""The operator's door: metrics, probes, state and commands over HTTP.

`server` listens, `auth` decides who may ask, `endpoints/` answer, `status/` is the page for people.
What they show comes through the protocols of `backend`.
"""
