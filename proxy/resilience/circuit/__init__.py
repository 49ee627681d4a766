"""Circuit breakers shared by the fleet through Redis.

`circuit` decides, without I/O; `registry` holds all breakers of the process; `sync` and `store`
keep them and Redis in agreement. No request ever waits for Redis.
"""
