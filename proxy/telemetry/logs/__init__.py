"""JSON log lines, written by one thread so that no other waits for a disk or a pipe.

Start with `setup`; `access` formats the access line, `redact` removes secrets.
"""
