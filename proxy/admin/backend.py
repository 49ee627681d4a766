"""What the admin API needs from the running proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Check:
    """One thing that must be so before requests may come. `detail` says what is the matter."""

    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Readiness:
    """Whether requests may be sent here. Checks inform; `ready` decides, because not everything
    that is wrong (Redis away) is a reason to send callers elsewhere."""

    ready: bool
    checks: Mapping[str, Check] = field(default_factory=dict)


@dataclass(frozen=True)
class ReloadResult:
    """The outcome of a reload: refused ones name every problem as `check` does."""

    ok: bool
    problems: Sequence[str] = ()
    stopping: bool = False
    """Refused because the proxy is draining, whatever the file says."""


class Exposed(Protocol):
    """The metrics, as text."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Body and content type for an `Accept` field; called in a thread."""
        ...


class AdminBackend(Protocol):
    """The running proxy, as an operator sees it."""

    @property
    def metrics(self) -> Exposed:
        """What `/metrics` shows."""
        ...

    @property
    def starting(self) -> bool:
        """Whether it is not yet up: then it answers for nothing but its probes and metrics."""
        ...

    def live(self) -> bool:
        """Whether the process works at all; False asks for its end."""
        ...

    def readiness(self) -> Readiness:
        """Whether requests may be sent here now."""
        ...

    def config(self) -> dict[str, Any]:
        """The config in force, secrets redacted, as JSON."""
        ...

    def routes(self) -> list[dict[str, Any]]:
        """The compiled routes in the order in which they are tried, as JSON."""
        ...

    async def reload(self) -> ReloadResult:
        """Load the config file anew; a refused file changes nothing."""
        ...

    async def upgrade(self) -> int:
        """Hand over to a new process of the program on disk; its pid. Raises an exception with the
        reason when it does not get so far."""
        ...

    def log_level(self) -> str:
        """DEBUG, INFO, WARNING or ERROR."""
        ...

    def set_log_level(self, level: str) -> None:
        """Change it at once, until the next change or reload. Raises `ValueError`."""
        ...
