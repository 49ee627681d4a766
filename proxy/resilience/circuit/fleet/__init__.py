"""A breaker's state in the whole fleet, through Redis: `sync` is where to begin reading.

`store` and `scripts` read and write it, `channel` learns of what other processes have changed.
"""
