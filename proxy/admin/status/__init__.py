"""The status page: what the proxy is doing, live, for people.

`sampler` takes a `snapshot` every second while somebody watches; `health_summary` writes the
headline.
"""
