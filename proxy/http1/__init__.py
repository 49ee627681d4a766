"""The HTTP/1.1 engine; knows nothing of routes.

`heads` (with `request_head`, `response_head`, `fields`) and `bodies` are the strict, I/O-free
codec; `stream` reads and writes within bounds; `client` is a caller's connection, `upstream/` are
the connections to a service.
"""
