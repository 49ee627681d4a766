"""A sidecar reliability proxy: see README.md for users and docs/architecture.md for readers."""

__version__ = "0.2.0"
