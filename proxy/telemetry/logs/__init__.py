"""JSON log lines, written by one thread so that nobody else waits for a disk or a pipe.

Start with `setup`; `access` formats the access line, `redact` removes secrets.
"""
