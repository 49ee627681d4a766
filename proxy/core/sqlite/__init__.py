"""SQLite files: opened, migrated and queried without blocking the event loop.

`file` has one writer and several `readers`; `recovery` replaces a damaged file with a new one.
"""
