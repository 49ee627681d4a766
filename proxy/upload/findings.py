"""What the probe of an upload has found, as the refusal that it calls for.

Nothing that the probe says is trusted: it has read hostile bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.errors import ProxyError
from proxy.upload import verdicts
from proxy.upload.session import ProbeSession

_REASONS = {
    "broken": "its packets cannot be read. Was it cut short?",
    "cut_short": "its index is missing, or its sound. Was it cut short?",
    "entries": "it has too many comments, boxes or parts",
    "no_audio": "it has no audio in it",
    "undecodable": "its packets do not decode",
    "junk": "too much of it is no audio",
    "memory": "it takes too much memory to read",
    "crashed": "it cannot be read",
    "slow": "it takes too long to read",
}


def refusal(
    session: ProbeSession, accepted: Sequence[str], max_duration: float | None, field: str | None
) -> ProxyError | None:
    """What speaks against the upload so far; None for nothing."""
    if session.lost is not None:
        if session.to_blame:
            return verdicts.duration_unknown(_REASONS[session.lost], field, session.lost)
        return verdicts.overloaded("upload_probe")
    if session.kind is not None and session.kind["type"] not in accepted:
        return verdicts.duration_unknown(_REASONS["crashed"], field, "crashed")
    match session.verdict:
        case None:
            return None
        case {"refused": "type", "what": str(what)}:
            return verdicts.type_rejected(what, accepted, field)
        case {"refused": "long", "duration": float(seconds)}:
            return verdicts.too_long(seconds, max_duration or 0.0, field)
        case {"refused": "unknown", "why": str(why)} if why in _REASONS:
            return verdicts.duration_unknown(_REASONS[why], field, why)
        case {"duration": float()} if session.kind is not None:
            return None
    return verdicts.duration_unknown(_REASONS["crashed"], field, "crashed")
