"""A client connection from its first byte to its last.

`listener` accepts, `connection` serves requests in order, `fast_path` serves the common ones
without waking the client's coroutine.
"""
