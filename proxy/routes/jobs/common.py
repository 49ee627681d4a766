"""What the jobs' routes share: the API key, doubts about a 404, replies of the mirror's.

The app may want an API key. Where the config knows it, the mirror answers for the app only to those
who send it, deletions included: an app that is away must not open its jobs to anyone.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from proxy.core.errors import (
    ApiKeyNeeded,
    ProxyError,
    StillWaiting,
    Unavailable,
    UpstreamFailure,
)
from proxy.forward.exchange import Exchange
from proxy.forward.routing.plan import Reply, Trouble
from proxy.jobs.answers import Answer
from proxy.jobs.mirror import Mirror


class ApiKeyCheck:
    """Who may have the mirror's answer; without a key everybody."""

    def __init__(self, api_key: str | None) -> None:
        self._key = None if api_key is None else api_key.encode()

    def admits(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Whether the mirror may answer. False when the app's own answer is to stand; raises
        `ApiKeyNeeded` when there is none."""
        if self._key is None:
            return True
        assert exchange.head is not None
        given = exchange.head.values(b"x-api-key")
        if len(given) == 1 and hmac.compare_digest(given[0], self._key):
            return True
        if isinstance(trouble, ProxyError):
            raise ApiKeyNeeded("Invalid or missing API key")
        return False


def doubt(mirror: Mirror, job_id: str, trouble: Trouble) -> None:
    """Raise, rather than pass on a 404 that may be untrue. Other trouble passes as what it is."""
    if not isinstance(trouble, ProxyError) and trouble.status == 404:
        doubt = mirror.reads.absence_unknown(job_id)
        if doubt is not None:
            raise doubt


def upstream_is_away(trouble: ProxyError) -> bool:
    return isinstance(trouble, UpstreamFailure | StillWaiting) or (
        isinstance(trouble, Unavailable) and trouble.code in ("circuit_open", "overloaded")
    )


def field_lines(fields: Iterable[tuple[str, str]]) -> tuple[bytes, ...]:
    return tuple(f"{name}: {value}".encode("latin-1") for name, value in fields)


def reply_with(answer: Answer) -> Reply:
    return Reply(answer.status, field_lines(answer.headers), answer.body)
