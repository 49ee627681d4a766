"""A durable copy of every job: captured from Redis, stored in SQLite, restored when Redis loses it.

`mirror.Mirror` is the API for routes and admin, `service` starts and stops all mirrors, and
`document` parses job documents. Knows the configuration and `core`; knows nothing of HTTP.
"""
