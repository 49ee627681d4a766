"""Redis replies and what they mean. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Command = tuple[Any, ...]

_REFUSES_ALL = ("OOM", "MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")
_FLUSH = re.compile(
    r"^cmdstat_(?:flushall|flushdb|swapdb):calls=([0-9]{1,18})(?![0-9])", re.MULTILINE
)
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class CommandError:
    """An error reply to one command. `right_missing`: the ACL of our user forbids it."""

    text: str
    right_missing: bool = False


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The parts of INFO that identify a server's data. None for what the server does not report.

    `flushes` counts FLUSHALL, FLUSHDB and SWAPDB since the server started or its statistics were
    reset. `replication` identifies the history of the data: it changes when a replica becomes
    master. `commands` counts all commands; it decreases when the statistics are reset.
    `server_time` is the server's clock, in Unix seconds.
    """

    run_id: str | None
    flushes: int | None
    evicted: int | None
    loading: bool
    replication: str | None = None
    replica: bool = False
    commands: int | None = None
    server_time: float | None = None


def no_permission(reply: object) -> bool:
    """Whether the server's ACL refused the command."""
    return isinstance(reply, CommandError) and reply.right_missing


def refuses_writes(reply: object) -> str | None:
    """Why the server refuses all writes now; None if it does not, or if the error concerns only
    this command or our user."""
    if isinstance(reply, CommandError) and reply.text.startswith(_REFUSES_ALL):
        return reply.text[:200]
    return None


def parse_info(info: str) -> ServerInfo:
    """Parse the text of INFO. Fields of refused sections are None."""
    fields = dict(line.strip().split(":", 1) for line in info.splitlines() if ":" in line)
    statistics = "cmdstat_" in info
    micros = _number(fields.get("server_time_usec"))
    return ServerInfo(
        run_id=fields.get("run_id"),
        flushes=sum(int(count) for count in _FLUSH.findall(info)) if statistics else None,
        evicted=_number(fields.get("evicted_keys")),
        loading=fields.get("loading", "0") != "0",
        replication=fields.get("master_replid"),
        replica=fields.get("role") == "slave",
        commands=_number(fields.get("total_commands_processed")),
        server_time=None if micros is None else micros / 1e6,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def notifies(reply: Any) -> bool:
    """Whether CONFIG GET shows that keyspace events for strings and removals are enabled."""
    pairs = reply.items() if isinstance(reply, dict) else []
    flags = b"".join(bytes(value) for _, value in pairs)
    if b"K" not in flags:
        return False
    return b"A" in flags or all(flag in flags for flag in (b"g", b"$", b"x"))


def no_hello(text: str) -> bool:
    """Whether a server that refused the first command does not support HELLO."""
    text = text.lower()
    return "hello" in text and ("unknown command" in text or "no permissions" in text)
