"""HTTP/1.1 between two sockets, knowing nothing of routes.

`heads` and `bodies` are the strict, I/O-free codec; `stream` reads and writes within bounds;
`client` is a caller's connection, `upstream/` are the connections to a service.
"""
