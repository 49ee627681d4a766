"""Shared by the job routes: the API key, unreliable 404s, replies from the mirror.

The app may require an API key. If it is in the config, the mirror answers in the app's place only
to callers that send it, deletions included: an app that is down must not expose its jobs.
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
    """Decides who may get the mirror's answer; without a key, everybody."""

    def __init__(self, api_key: str | None) -> None:
        self._key = None if api_key is None else api_key.encode()

    def admits(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Whether the mirror may answer. If not, returns False to keep the app's own answer, or
        raises `ApiKeyNeeded` if there is none."""
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
    """Raise instead of relaying a 404 that may be wrong. Anything else passes unchanged."""
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
