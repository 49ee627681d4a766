"""Circuit breakers shared by the fleet through Redis.

`circuit` decides, without I/O; `registry` holds all breakers of the process; `sync` and `store`
synchronize them with Redis. No request waits for Redis, except briefly for a probe lease.
"""
