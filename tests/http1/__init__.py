"""A hostile client, a hostile upstream and the real proxy process between them.

Everything here speaks raw sockets and has its own strict reading of RFC 9112, so that no mistake
is shared with the engine under test.
"""

from tests.http1.client import RawClient
from tests.http1.message import PATIENCE, Malformed, Request, Response, Truncated
from tests.http1.process import ProxyProcess, free_port, wait_until
from tests.http1.site import Site, assert_problem, get, post
from tests.http1.upstream import Connection, Upstream, answer, ok, respond

__all__ = [
    "PATIENCE",
    "Connection",
    "Malformed",
    "ProxyProcess",
    "RawClient",
    "Request",
    "Response",
    "Site",
    "Truncated",
    "Upstream",
    "answer",
    "assert_problem",
    "free_port",
    "get",
    "ok",
    "post",
    "respond",
    "wait_until",
]
