"""Stages of one's own: what a route does with a request and its answer, in Python.

See docs/how-to/extending.md. A stage is a subclass of `Stage` with a model of its settings;
`bind(route)` returns the `Hooks` that it wants there. Everything here is stable: what
changes is in the changelog.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, unquote

from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy
from pydantic import AfterValidator, Field, model_validator

from proxy.config.extensions import UpstreamRef
from proxy.config.values import Duration, HeaderName, Model, Secret, Size
from proxy.config.values import Share as Ratio
from proxy.errors import ProxyError
from proxy.headers import NOT_EDITABLE

if TYPE_CHECKING:
    from proxy.pipeline.exchange import Exchange
    from proxy.wire.codec import ResponseHead

__all__ = [
    "Duration",
    "HeaderName",
    "Hooks",
    "Outcome",
    "Ratio",
    "Refused",
    "Request",
    "Response",
    "Route",
    "Secret",
    "Settings",
    "Size",
    "Stage",
    "UpstreamName",
]

UpstreamName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"), AfterValidator(UpstreamRef)
]
"""A setting that names an upstream; `check` looks whether there is one."""

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Settings(Model):
    """Base of a stage's settings: frozen, and unknown keys are errors. A default that is text is
    read as a value in the config is: `Duration = "500ms"` is half a second."""

    @model_validator(mode="before")
    @classmethod
    def _read_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        texts = {
            name: field.default
            for name, field in cls.model_fields.items()
            if isinstance(field.default, str) and field.validation_alias is None
        }
        return {**texts, **given}


class Refused(ProxyError):
    """Raise it in a hook to answer with an error instead of the upstream's answer.

    `status` is 400 to 599, `detail` says why, for people; `code` is for programs and appears in the
    log and as a metric label: few and fixed ones. `facts` are further members of the problem
    document. `retry_after` is in seconds. `challenge` becomes `WWW-Authenticate`, which goes with
    401.
    """

    status, code, title = 403, "refused", "Refused"

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str = "refused",
        retry_after: float | None = None,
        challenge: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(detail, retry_after=retry_after, **facts)
        if not 400 <= status <= 599 or status not in set(HTTPStatus):
            raise ValueError(f"expected the status of an error, found {status!r}")
        if not _CODE.fullmatch(code):
            raise ValueError(f"expected a code of a-z, 0-9 and _, found {code!r}")
        if challenge is not None and not _VALUE.fullmatch(challenge):
            raise ValueError("the challenge has characters that no field may have")
        self.challenge = challenge  # type: ignore[misc]
        self.status = status  # type: ignore[misc]  # fixed by class everywhere else
        self.code = code  # type: ignore[misc]
        self.title = HTTPStatus(status).phrase  # type: ignore[misc]


class Edits:
    """Header fields to set and to remove. Raises `ValueError` for those that belong to framing,
    connection or proxy, and for values that no field may have."""

    def __init__(self) -> None:
        self.set: dict[str, str] = {}
        self.removed: set[str] = set()
        self.added: list[tuple[str, str]] = []

    def put(self, name: str, value: str) -> None:
        """One field instead of all of that name."""
        self._check(name, value)
        self.set[name] = value

    def add(self, name: str, value: str) -> None:
        """One more field of that name."""
        self._check(name, value)
        self.added.append((name, value))

    def drop(self, name: str) -> None:
        """No field of that name."""
        self._check(name)
        self.removed.add(name)

    @staticmethod
    def _check(name: str, value: str = "") -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header field")
        if name.lower() in NOT_EDITABLE:
            raise ValueError(f"{name} belongs to the proxy and cannot be changed")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value for {name} has characters that no field may have")


def _fields(lines: list[bytes], *more: tuple[str, bytes | None]) -> CIMultiDictProxy[str]:
    fields = CIMultiDict((name, one.decode("latin-1")) for name, one in more if one is not None)
    for line in lines:
        name, _, value = line.partition(b":")
        fields.add(name.decode("latin-1"), value.strip(b" \t").decode("latin-1"))
    return CIMultiDictProxy(fields)


class Request:
    """A request on its way. All stages of a route see the same one.

    `method`, `target` (path and query as sent), `client` (address and port), `correlation_id` and
    `route` are text; `state` is for whatever one hook leaves for another.
    """

    def __init__(self, exchange: Exchange) -> None:
        assert exchange.head is not None
        self._exchange = exchange
        self._head = exchange.head
        self._edits = Edits()
        self._upstream: str | None = None
        self.method = exchange.method
        self.target = exchange.head.target
        self.client = exchange.client
        self.route = exchange.route
        self.state: dict[str, Any] = {}

    @property
    def correlation_id(self) -> str:
        """As in the log and upstream."""
        return self._exchange.correlation_id

    @cached_property
    def path(self) -> str:
        """The path, percent-decoded once."""
        return unquote(self.target.partition("?")[0])

    @cached_property
    def query(self) -> MultiDictProxy[str]:
        """The query's parameters, decoded; `getall` where one may come several times."""
        query = self.target.partition("?")[2]
        return MultiDictProxy(MultiDict(parse_qsl(query, keep_blank_values=True)))

    @cached_property
    def headers(self) -> CIMultiDictProxy[str]:
        """The client's header fields, without those that end at the proxy."""
        return _fields(self._head.lines, ("Host", self._head.host))

    @cached_property
    def cookies(self) -> Mapping[str, str]:
        """The client's cookies; of several with one name the first, which is the most specific
        (RFC 6265 §5.4)."""
        found: dict[str, str] = {}
        for pair in ";".join(self.headers.getall("Cookie", [])).split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                found.setdefault(name.strip(), value.strip().strip('"'))
        return found

    def set_header(self, name: str, value: str) -> None:
        """Send this field upstream, instead of all of that name."""
        self._edits.put(name, value)

    def remove_header(self, name: str) -> None:
        """Send no field of that name upstream."""
        self._edits.drop(name)

    def use_upstream(self, name: str) -> None:
        """Ask this upstream instead of the route's; only in `Hooks.request`."""
        self._upstream = name

    def log(self, **facts: object) -> None:
        """Add these facts to the request's line in the access log."""
        self._exchange.note(**facts)


class Response:
    """The head of the upstream's answer, before the client gets it."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._edits = Edits()
        self.status = head.status

    @cached_property
    def headers(self) -> CIMultiDictProxy[str]:
        """The upstream's header fields, without those that end at the proxy."""
        return _fields(self._head.lines)

    def set_header(self, name: str, value: str) -> None:
        """Send this field to the client, instead of all of that name."""
        self._edits.put(name, value)

    def add_header(self, name: str, value: str) -> None:
        """Send this field to the client beside others of that name, as `Set-Cookie` wants it."""
        self._edits.add(name, value)

    def remove_header(self, name: str) -> None:
        """Send no field of that name to the client."""
        self._edits.drop(name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `status` is what the client got (499: it left), `code` names an error of the
    proxy's or a stage's own, `duration` is in seconds."""

    status: int
    code: str | None
    duration: float
    upstream: str | None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a stage is put: from the config."""

    name: str
    listener: str
    direction: str
    path: str
    methods: tuple[str, ...]
    upstream: str
    upstreams: tuple[str, ...] = field(default=())
    """All upstreams of the config."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a stage does on a route; what it leaves empty costs nothing. Plain functions, called on
    the event loop: they must not wait for anything.

    `request` sees a request before any of its body is read; it may change what goes upstream, or
    raise `Refused`. `response` sees the head of the upstream's answer, likewise. `finished` is
    called when all is over, also after an error; it is too late to change anything then.
    """

    request: Callable[[Request], None] | None = None
    response: Callable[[Request, Response], None] | None = None
    finished: Callable[[Request, Outcome], None] | None = None


class Stage:
    """A stage. One is made for each route that uses it, and anew with each reload."""

    class Settings(Settings):
        """No settings; give the stage a class of this name and base where it has some."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def bind(self, route: Route) -> Hooks | None:
        """Its hooks on that route, or None where it has nothing to do there."""
        raise NotImplementedError(f"{type(self).__name__}.bind")
