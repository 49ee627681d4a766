"""A durable copy of every job: captured from Redis, kept in SQLite, given back, worked to its end.

`mirror.Mirror` is what routes and admin use; `service` starts and stops all mirrors; `document`
reads job documents.
"""
