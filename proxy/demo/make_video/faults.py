"""What hurts about the make-video service, one switch per pain.

Every default is what the real service does. A test, or a curious reader, turns a pain off
(`--no-lying-breaker`) or makes it come sooner (`--exit-every 20`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Faults:
    """The app's and the worker's misbehaviour. Times are seconds."""

    redis_down_is_404: bool = True
    """Redis unreachable reads as "Job not found"; off: an honest 503."""

    lying_breaker: bool = True
    """The app's own Redis breaker opens, and then accepts jobs without writing their key."""

    breaker_failures: int = 5
    """Failed Redis calls in a row that open the app's breaker."""

    breaker_open_for: float = 60.0
    """How long the app's breaker stays open."""

    eating_worker: bool = True
    """The worker's own Redis breaker opens, too: meanwhile it takes messages, finds no job, and
    ends the task as succeeded. Off: its writes are lost one by one."""

    deaf_queue: bool = True
    """The producer declares its queue once per process, so an emptied Redis swallows messages."""

    blocking_redis: bool = True
    """Redis is called on the event loop: a hung Redis freezes every request, `/health` too."""

    redis_timeout: float = 10.0
    """One try of one Redis call. Reads are tried twice and writes three times: 20 s and 30 s."""

    connection_limit: int = 10
    """Open connections, or tasks, at which every request gets 503: nine work. 0: no limit."""

    task_linger: float = 0.02
    """How long a request's task may outlive its answer and count for the limit, at most one on each
    connection. 0: not at all."""

    exit_every: int = 1000
    """Requests after which the app ends itself. 0: never."""

    drops_at_exit: float = 0.05
    """How long, before it ends itself, the app drops what comes on open connections: the connection
    is closed without an answer, and nothing was done. 0: not at all."""

    resurrecting_worker: bool = True
    """The worker writes its own copy of a job, so a deleted one rises again."""

    stranding_worker: bool = True
    """What a killed worker had taken stays in `unacked`; off: put back at the next start."""

    redeclare_after: float = 2.0
    """How long after a lost connection an idle worker declares its queue again. 0: at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per switch, `--redis-down-is-404` or `--no-redis-down-is-404` and so on."""
    group = parser.add_argument_group("what hurts (defaults: as the real service)")
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
