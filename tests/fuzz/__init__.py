"""Fuzz targets: bytes in, an assertion that fails where the proxy and another parser differ.

`python -m tests.fuzz TARGET`, or `make fuzz`, lets atheris (libFuzzer) search with the coverage of
our parsers as its guide. `make test` runs the targets on their seeds and on some random bytes.
"""
