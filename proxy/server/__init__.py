"""A client connection from its first byte to its last.

`listener` accepts, `connection` reads requests and writes responses in order, `fast_path` serves
the plain ones without waking the client's coroutine.
"""
