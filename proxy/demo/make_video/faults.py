"""The known faults of the make-video service, one switch for each.

The defaults are the behaviour of the real service. A fault can be turned off
(`--no-lying-breaker`) or made more frequent (`--exit-every 20`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Faults:
    """The app's and the worker's misbehaviour. Times are seconds."""

    redis_down_is_404: bool = True
    """An unreachable Redis gives "Job not found"; off: 503."""

    lying_breaker: bool = True
    """While the app's own Redis breaker is open, it accepts jobs without writing their key."""

    breaker_failures: int = 5
    """Consecutive failed Redis calls that open the app's breaker."""

    breaker_open_for: float = 60.0
    """How long the app's breaker stays open."""

    eating_worker: bool = True
    """While the worker's own Redis breaker is open, it takes messages, finds no job, and completes
    the task as succeeded. Off: only its writes are lost."""

    deaf_queue: bool = True
    """The producer declares its queue once per process, so an emptied Redis swallows messages."""

    blocking_redis: bool = True
    """Redis is called on the event loop: a hung Redis freezes every request, `/health` too."""

    redis_timeout: float = 10.0
    """For one try of a Redis call. Reads are tried twice, writes three times: 20 s and 30 s."""

    connection_limit: int = 10
    """Open connections or tasks at which every request gets 503, so nine work. 0: no limit."""

    task_linger: float = 0.02
    """How long a request's task may outlive its response and count against the limit; one per
    connection at most. 0: not at all."""

    exit_every: int = 1000
    """Requests after which the app exits. 0: never."""

    drops_at_exit: float = 0.05
    """How long before it exits the app drops requests on open connections: it closes them without a
    response, and nothing was done. 0: not at all."""

    resurrecting_worker: bool = True
    """The worker writes its own copy of a job, so a deleted job reappears."""

    stranding_worker: bool = True
    """Messages of a killed worker stay in `unacked`; off: put back at the next start."""

    redeclare_after: float = 2.0
    """How long after a lost connection an idle worker declares its queue again. 0: at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per switch: `--redis-down-is-404`, `--no-redis-down-is-404` and so on."""
    group = parser.add_argument_group("faults (defaults: as in the real service)")
    for field in fields(Faults):
        option = "--" + field.name.replace("_", "-")
        default = field.default
        if isinstance(default, bool):
            group.add_argument(option, default=default, action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(option, default=default, type=type(default), metavar="N")


def from_arguments(arguments: argparse.Namespace) -> Faults:
    """The switches of a parsed command line."""
    return Faults(**{field.name: getattr(arguments, field.name) for field in fields(Faults)})
