"""Side-by-side benchmark of the proxy and its peers.

The method: docs/explanation/benchmarks.md.
"""
