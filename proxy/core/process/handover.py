"""Hands the listening sockets of a running proxy to a new process of the program on disk.

1. The old process starts the new one, which inherits the sockets and one end of a control channel.
   The new one loads the config, compiles, starts its probes, and sends `prepared`.
2. The old one stops accepting: newcomers wait in the kernel's queue. It lets exchanges with jobs
   end, stops all that writes, and sends `yours`.
3. The new one opens the stores, accepts, and sends `serving`. The old one drains and exits.

Whatever fails or is late before `serving`: the old one ends the new one, takes everything back and
goes on. The messages are JSON objects, one a line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from proxy.core.process.systemd import listening_socket

logger = logging.getLogger(__name__)

_VARIABLE = "RELIABILITY_PROXY_HANDOVER"

#: Seconds that a new process may take to be prepared, and then to serve.
PREPARED, SERVING = 60.0, 30.0

#: What is meant for one process alone.
_MINE = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", _VARIABLE)

#: Bytes of a message.
_LONGEST = 64 * 1024


class HandoverFailed(Exception):
    """The other process did not do its part; the message says why."""


#: What runs as the first process of a container, and ends with the one that it has started.
_INITS = frozenset({"tini", "docker-init", "dumb-init", "catatonit"})


def ends_its_container(process: Path = Path("/proc/1/comm")) -> bool:
    """Whether the end of this process is the end of its container, successor included."""
    if os.getpid() == 1:
        return True
    if os.getppid() != 1:
        return False
    try:
        return process.read_text().strip() in _INITS
    except OSError:
        return False


class _Channel:
    """One end of the control channel."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._sending = end.dup()  # also when the event loop is over
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def receive(self, stage: str, seconds: float | None) -> dict[str, Any]:
        """The message that says `stage`. Raises `HandoverFailed` for another, and for none."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(
                sock=self._end, limit=_LONGEST
            )
        try:
            async with asyncio.timeout(seconds):
                line = await self._reader.readline()
        except TimeoutError:
            raise HandoverFailed(f"it was not {stage} within {seconds:g} s") from None
        except (OSError, ValueError) as error:
            raise HandoverFailed(str(error)) from None
        if not line:
            raise HandoverFailed(f"it ended before it was {stage}")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise HandoverFailed(f"it sent no message: {line[:100]!r}")
        if message.get("stage") != stage:
            raise HandoverFailed(str(message.get("reason") or message))
        return message

    def send(self, stage: str, **more: object) -> None:
        """A message is small, and the channel empty: it never waits. Nobody there: never mind."""
        line = json.dumps({"stage": stage, **more}).encode() + b"\n"
        try:
            self._sending.send(line)
        except OSError as error:
            logger.info("handover: nobody listens", extra={"error": str(error)})

    def close(self) -> None:
        self._sending.close()
        if self._writer is not None:
            self._writer.close()
        else:
            self._end.close()


class Successor:
    """The new process, as the old one sees it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: _Channel) -> None:
        self._process = process
        self._channel = channel

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, sockets: Sequence[tuple[str, socket.socket]]) -> Successor:
        """Start the program as it is on disk now, with the arguments of this process. `sockets`
        have labels, by which it finds them. Raises `HandoverFailed`."""
        ours, theirs = socket.socketpair()
        labelled = [(label, one.fileno()) for label, one in sockets]
        environment = {name: value for name, value in os.environ.items() if name not in _MINE}
        environment[_VARIABLE] = json.dumps({"control": theirs.fileno(), "sockets": labelled})
        command = [sys.executable, *sys.orig_argv[1:]]
        with theirs:
            try:
                process = await asyncio.to_thread(
                    subprocess.Popen,
                    command,
                    pass_fds=[theirs.fileno(), *(descriptor for _, descriptor in labelled)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                )
            except (OSError, ValueError) as error:
                ours.close()
                raise HandoverFailed(f"{command[0]} cannot be started: {error}") from None
        return cls(process, _Channel(ours))

    async def prepared(self) -> None:
        """Until it has done all that it can beside us. Raises `HandoverFailed`."""
        await self._channel.receive("prepared", PREPARED)

    async def take_over(self) -> list[str]:
        """Let it serve; returns the labels of the sockets that it uses. Raises
        `HandoverFailed`."""
        self._channel.send("yours")
        message = await self._channel.receive("serving", SERVING)
        return [str(label) for label in message.get("taken", ())]

    async def end(self) -> None:
        """Kill it; returns when it is gone, and with it whatever it had opened."""
        self._channel.close()
        self._process.kill()
        await asyncio.shield(asyncio.to_thread(self._process.wait))

    def leave(self) -> None:
        """It serves: from now on it is on its own."""
        self._channel.close()
        self._process.returncode = 0  # or else Python would warn that it still runs


class Predecessor:
    """The old process, as the new one sees it."""

    def __init__(self, control: int, sockets: Sequence[tuple[str, socket.socket]]) -> None:
        self._channel = _Channel(socket.socket(fileno=control))
        self.sockets = sockets

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str] = os.environ
    ) -> Predecessor | None:
        """None: this process was started by nobody of its kind. Raises `OSError`."""
        text = environment.pop(_VARIABLE, "")
        if not text:
            return None
        given: Mapping[str, Any] = json.loads(text)
        os.set_inheritable(given["control"], False)
        sockets = [
            (str(label), listening_socket(int(descriptor), str(label)))
            for label, descriptor in given["sockets"]
        ]
        return cls(int(given["control"]), sockets)

    async def yours(self) -> None:
        """Say that we are prepared, and wait until the stores and callers are ours. Raises
        `HandoverFailed`: the old process has given up on us, or has ended."""
        self._channel.send("prepared")
        await self._channel.receive("yours", None)

    def serving(self, taken: Sequence[str]) -> None:
        """We serve, with those of the sockets."""
        self._channel.send("serving", taken=list(taken))
        self._channel.close()

    def failed(self, reason: str) -> None:
        """We shall not serve."""
        self._channel.send("failed", reason=reason[:4000])
