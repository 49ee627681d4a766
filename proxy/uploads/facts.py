"""What is known about an upload, for access log, metrics and spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from proxy.core.errors import Overloaded, ProxyError

if TYPE_CHECKING:
    from proxy.uploads.probe.session import ProbeSession

#: `verdict` (`accepted`, an error's code, `overloaded` or `unfinished`), `mode`, `type` and `label`
#: (ours and libmagic's), `size` in bytes, `duration` in seconds, `validation_ms` from the last byte
#: to the verdict, `reason`. The access log has them as `upload_NAME`.
FACTS: Final = ("verdict", "mode", "type", "label", "size", "duration", "validation_ms", "reason")


def facts_of(
    session: ProbeSession, error: ProxyError | None, mode: str, size: int, delay: float | None
) -> dict[str, Any]:
    """The facts known so far. `delay`: milliseconds, None before the verdict."""
    found = session.verdict or {}
    kind = session.kind or {k: v for k, v in found.items() if isinstance(v, str)}
    if error is not None:
        verdict = "overloaded" if isinstance(error, Overloaded) else error.code
    else:
        verdict = "unfinished" if delay is None else "accepted"
    values = (
        verdict,
        mode,
        kind.get("type", kind.get("family")),
        kind.get("label"),
        size,
        found.get("duration"),
        delay,
        error.reason if error is not None else None,
    )
    facts = zip(FACTS, values, strict=True)
    return {name: value for name, value in facts if value is not None}
