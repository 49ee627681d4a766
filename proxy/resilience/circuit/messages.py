"""The messages between a breaker and the fleet: records without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from proxy.resilience.circuit.states import State

ProbeOutcome = Literal["success", "failure", "cancel"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed call. `at` is Unix seconds; `kind` is `connect`, `reset`, `timeout`, `slow` or
    the status as text."""

    at: float
    kind: str
    target: str | None = None
    correlation_id: str | None = None

    def document(self) -> dict[str, Any]:
        """For JSON: Redis, the admin API, the log."""
        return {
            "at": round(self.at, 3),
            "kind": self.kind,
            "target": self.target,
            "correlation_id": self.correlation_id,
        }


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state. `mine`: made by this process, which therefore counts and logs it.
    `restored`: restored to a Redis that had lost it, so not counted again. `tid` identifies the
    transition in every process and log."""

    from_state: State
    to_state: State
    reason: str
    generation: int
    mine: bool
    by: str
    tid: str = ""
    restored: bool = False
    open_for: float = 0.0
    failures: tuple[Failure, ...] = ()


@dataclass(slots=True)
class Report:
    """Outcomes since the last report, all of one generation.

    `reset`: there was a success, and `failures` counts those after the last one. `trip` is the
    reason of a trip that has already taken effect here. `tid` identifies the transition that this
    report may cause, so that this process recognises it even if the reply was lost.
    """

    generation: int
    tid: str
    epoch: int
    reset: bool = False
    failures: int = 0
    trip: str = ""
    recent: list[Failure] = field(default_factory=list)
    probes: list[tuple[str, ProbeOutcome]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One transition as recorded in Redis."""

    generation: int
    from_state: State
    to_state: State
    reason: str
    by: str
    tid: str
    restored: bool


@dataclass(frozen=True, slots=True)
class SharedState:
    """A breaker as Redis has it. Generation 0: Redis knows nothing of it.

    `server_time` is Redis' clock, Unix seconds; `remaining` and `age` are seconds by that clock,
    so no host's clock is ever compared with another's. `log` has the transitions that the asker
    did not know, oldest first; `granted` the probe leases just given.
    """

    name: str
    generation: int
    state: State
    server_time: float
    remaining: float
    age: float
    failures: int
    successes: int
    opens: int
    reason: str
    by: str
    log: tuple[LogEntry, ...] = ()
    recent: tuple[Failure, ...] = ()
    granted: tuple[str, ...] = ()
    unpublished: str = ""  # why the other processes were not notified


@dataclass(frozen=True, slots=True)
class ChangeNotice:
    """A message from the channel. `name` is a breaker that has changed, or empty if the message
    only shows that the channel works. It is only a hint, because anybody may have sent it.
    `published`: somebody has published it, so messages get through; otherwise it is Redis'
    confirmation of the subscription, which does not show that anybody may publish."""

    name: str = ""
    generation: int = 0
    by: str = ""
    published: bool = True


@dataclass(frozen=True, slots=True)
class Glance:
    """The least that shows whether a breaker must be read. `ahead`: its state began in the
    future."""

    generation: int
    failures: int
    ahead: bool
