"""SQLite files: opened, migrated and queried without blocking the event loop.

`file` has one writer and several `readers`; `recovery` sets a damaged file aside and starts anew.
"""
