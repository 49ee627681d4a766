"""The objects that hooks get: the request, the head of the response, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy

from proxy.extend.fields import Edits
from proxy.trace.events import bounded

if TYPE_CHECKING:
    from proxy.forward.exchange import Exchange
    from proxy.http1.response_head import ResponseHead


class Request:
    """A request. All stages of a route get the same object.

    `state` is for data that one hook leaves for another.
    """

    def __init__(self, exchange: Exchange) -> None:
        assert exchange.head is not None
        self._exchange = exchange
        self._head = exchange.head
        self._edits: Edits | None = None
        self._upstream: str | None = None
        self._sent = False
        self._held = False  # its stages must not be closed yet
        self.state: dict[str, Any] = {}

    @property
    def method(self) -> str:
        """The method, as sent."""
        return self._exchange.method

    @property
    def target(self) -> str:
        """Path and query, as sent."""
        return self._head.target

    @property
    def client(self) -> str:
        """The client's address and port."""
        return self._exchange.client

    @property
    def route(self) -> str:
        """The name of the route."""
        return self._exchange.route

    @property
    def correlation_id(self) -> str:
        """The correlation ID, as in the log and upstream."""
        return self._exchange.correlation_id

    @cached_property
    def path(self) -> str:
        """The path, percent-decoded once."""
        return unquote(self.target.partition("?")[0])

    @cached_property
    def query(self) -> MultiDictProxy[str]:
        """The query's parameters, decoded; use `getall` for repeated ones."""
        query = self.target.partition("?")[2]
        return MultiDictProxy(MultiDict(parse_qsl(query, keep_blank_values=True)))

    @cached_property
    def headers(self) -> CIMultiDictProxy[str]:
        """The client's header fields, without the hop-by-hop fields."""
        return _fields(self._head.lines, ("Host", self._head.host))

    @cached_property
    def cookies(self) -> Mapping[str, str]:
        """The client's cookies; of several with the same name the first, which is the most specific
        (RFC 6265 §5.4)."""
        found: dict[str, str] = {}
        for pair in ";".join(self.headers.getall("Cookie", [])).split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                found.setdefault(name.strip(), value.strip().strip('"'))
        return found

    def set_header(self, name: str, value: str) -> None:
        """Replace all fields of that name upstream; only in `Hooks.request`."""
        self._changes().put(name, value)

    def remove_header(self, name: str) -> None:
        """Send no field of that name upstream; only in `Hooks.request`."""
        self._changes().drop(name)

    def use_upstream(self, name: str) -> None:
        """Use this upstream instead of the route's; only in `Hooks.request`."""
        self._not_sent()
        self._upstream = name

    def log(self, **facts: object) -> None:
        """Add these facts to the request's line in the access log: plain values; long ones are
        truncated."""
        self._exchange.note(**_plain(facts))

    def _changes(self) -> Edits:
        self._not_sent()
        if self._edits is None:
            self._edits = Edits()
        return self._edits

    def _not_sent(self) -> None:
        if self._sent:
            raise RuntimeError("the request has been sent: only `Hooks.request` can change it")


class Response:
    """The head of the upstream's response, before the client gets it."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._edits: Edits | None = None

    @property
    def status(self) -> int:
        """The status that the upstream sent."""
        return self._head.status

    @cached_property
    def headers(self) -> CIMultiDictProxy[str]:
        """The upstream's header fields, without the hop-by-hop fields."""
        return _fields(self._head.lines)

    def set_header(self, name: str, value: str) -> None:
        """Replace all fields of that name for the client."""
        self._changes().put(name, value)

    def add_header(self, name: str, value: str) -> None:
        """Add a field of that name for the client, as `Set-Cookie` needs it."""
        self._changes().add(name, value)

    def remove_header(self, name: str) -> None:
        """Send no field of that name to the client."""
        self._changes().drop(name)

    def _changes(self) -> Edits:
        if self._edits is None:
            self._edits = Edits()
        return self._edits


class Outcome(NamedTuple):
    """The outcome of an exchange. `status` is what the client got (499: it left), `code` an error
    of the proxy or a stage, `duration` in seconds. `target` is the address of the last attempt,
    `attempts` their number, `bytes_in` and `bytes_out` the bodies' sizes at the client."""

    status: int
    code: str | None
    duration: float
    upstream: str | None
    target: str | None = None
    attempts: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


def _plain(facts: Mapping[str, object]) -> dict[str, Any]:
    try:
        return bounded(facts)
    except Exception:  # a value whose `repr` raises
        return {}


def _fields(lines: list[bytes], *more: tuple[str, bytes | None]) -> CIMultiDictProxy[str]:
    fields = CIMultiDict((name, one.decode("latin-1")) for name, one in more if one is not None)
    for line in lines:
        name, _, value = line.partition(b":")
        fields.add(name.decode("latin-1"), value.strip(b" \t").decode("latin-1"))
    return CIMultiDictProxy(fields)
