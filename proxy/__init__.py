"""A sidecar reliability proxy. Users: README.md. Readers: docs/explanation/architecture.md."""

__version__ = "0.2.0"
