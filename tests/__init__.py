"""Tests; `tests.http1` is the raw-socket harness, `tests.bench` the comparison."""
