"""Side-by-side benchmark of the proxy and its peers; docs/benchmarks.md explains the method."""
