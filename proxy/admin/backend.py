"""What the admin API needs of the running proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Check:
    """The result of one check; `detail` explains it."""

    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Readiness:
    """Whether requests may be sent here. `ready` decides and the checks inform, because not every
    failure (such as Redis being away) is a reason to send callers elsewhere."""

    ready: bool
    checks: Mapping[str, Check] = field(default_factory=dict)


@dataclass(frozen=True)
class ReloadResult:
    """The outcome of a reload; a refused one lists every problem, as `check` does."""

    ok: bool
    problems: Sequence[str] = ()
    stopping: bool = False
    """Refused because the proxy is draining, whatever the file says."""


class Exposed(Protocol):
    """The metrics as text."""

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
        """Whether it is still starting: then only probes and metrics are answered."""
        ...

    def live(self) -> bool:
        """Whether the process works at all; False asks for a restart."""
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

    def upstream_names(self) -> list[str]:
        """The upstreams in force."""
        ...

    async def reload(self) -> ReloadResult:
        """Load the config file again; a refused file changes nothing."""
        ...

    async def upgrade(self) -> int:
        """Hand over to a new process of the program on disk and return its pid. Raises an exception
        with the reason if that fails."""
        ...

    def log_level(self) -> str:
        """DEBUG, INFO, WARNING or ERROR."""
        ...

    def set_log_level(self, level: str) -> None:
        """Change it at once, until the next change or reload. Raises `ValueError`."""
        ...
