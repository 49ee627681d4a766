"""Circuit breakers shared by the fleet through Redis.

`circuit` decides, without I/O; `registry` holds all breakers of the process; `fleet/` synchronizes
them with Redis. No request waits for Redis, except briefly for a probe lease.
"""
