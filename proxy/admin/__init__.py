"""The admin API: metrics, probes, state and commands over HTTP.

`server` listens, `auth` checks requests, `endpoints/` answer them, and `status/` is the page for
people. They get their data through the protocols of `backend`.
"""
