"""How a hook refuses a request: with an error in the same form as the proxy's own."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from proxy.core.errors import ProxyError
from proxy.extend.fields import check_value

#: Limits: characters of the detail and of the facts, and seconds of `retry_after`.
_LONGEST_DETAIL, _LONGEST_FACTS, _LONGEST_RETRY = 2000, 8000, 366 * 86400.0

_FIXED_MEMBERS = {"type", "title", "status", "detail", "message", "code", "correlation_id"}

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Refused(ProxyError):
    """Raise it in a hook to answer with an error instead of the upstream's response.

    `status` is 400 to 599, `detail` explains the reason to people; `code` is for programs, appears
    in the log and is a metric label, so use few and fixed ones. `facts` are further members of the
    problem document. `retry_after` is in seconds. `challenge` becomes `WWW-Authenticate`, for
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
        super().__init__(_detail(detail), retry_after=_seconds(retry_after))
        self.facts = _members(facts)
        if not 400 <= status <= 599 or status not in set(HTTPStatus):
            raise ValueError(f"expected the status of an error, found {status!r}")
        if not _CODE.fullmatch(code):
            raise ValueError(f"expected a code of a-z, 0-9 and _, found {code!r}")
        if challenge is not None:
            check_value("WWW-Authenticate", challenge)
        self.challenge = challenge  # type: ignore[misc]
        self.status = status  # type: ignore[misc]  # fixed by class everywhere else
        self.code = code  # type: ignore[misc]
        self.title = HTTPStatus(status).phrase  # type: ignore[misc]


def _detail(detail: str) -> str:
    if not isinstance(detail, str):
        raise TypeError(f"expected a text as detail, found {type(detail).__name__}")
    if len(detail) > _LONGEST_DETAIL:
        raise ValueError(f"the detail has {len(detail)} characters, {_LONGEST_DETAIL} at most")
    return detail.encode("utf-8", "backslashreplace").decode()


def _seconds(retry_after: float | None) -> float | None:
    if retry_after is not None and not 0 <= retry_after <= _LONGEST_RETRY:
        raise ValueError(f"expected retry_after in seconds, found {retry_after!r}")
    return retry_after


def _members(facts: dict[str, Any]) -> dict[str, Any]:
    """Raises `ValueError` for facts that JSON cannot represent, are too long, or have the name of a
    fixed member."""
    if taken := _FIXED_MEMBERS & facts.keys():
        raise ValueError(f"the problem document has its own {', '.join(sorted(taken))}")
    try:
        text = json.dumps(facts, default=str, allow_nan=False)
    except RecursionError:
        raise ValueError("the facts are nested too deeply") from None
    if len(text) > _LONGEST_FACTS:
        raise ValueError(f"the facts have {len(text)} characters, {_LONGEST_FACTS} at most")
    members: dict[str, Any] = json.loads(text)
    return members
