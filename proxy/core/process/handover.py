"""Hands the listening sockets of a running proxy to a new process of the program on disk.

1. The old process starts the new one, which inherits the sockets and one end of a control channel.
   The new one loads the config, compiles it, starts its probes, and sends `prepared`.
2. The old one stops accepting; new connections wait in the kernel's queue. It lets exchanges with
   jobs end, stops everything that writes, and sends `yours`.
3. The new one opens the stores, accepts, and sends `serving`. The old one drains and exits.

If anything fails or times out before `serving`, the old process kills the new one, takes everything
back and goes on. The messages are JSON objects, one per line.
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

#: Seconds that a new process has to prepare, and then to serve.
PREPARED, SERVING = 60.0, 30.0

#: Variables that are meant for one process only.
_MINE = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", _VARIABLE)

#: The longest message, in bytes.
_LONGEST = 64 * 1024


class HandoverFailed(Exception):
    """The other process failed to do its part; the message says why."""


#: Init programs of containers that exit with the process they started.
_INITS = frozenset({"tini", "docker-init", "dumb-init", "catatonit"})


def ends_its_container(process: Path = Path("/proc/1/comm")) -> bool:
    """Whether the container ends with this process, and the successor with it."""
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
        self._sending = end.dup()  # usable after the event loop has ended
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def receive(self, stage: str, seconds: float | None) -> dict[str, Any]:
        """Wait for the message of `stage`. Raises `HandoverFailed` for another one, and for
        none."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(
                sock=self._end, limit=_LONGEST
            )
        try:
            async with asyncio.timeout(seconds):
                line = await self._reader.readline()
        except TimeoutError:
            raise HandoverFailed(
                f"the other process was not {stage} within {seconds:g} s"
            ) from None
        except (OSError, ValueError) as error:
            raise HandoverFailed(str(error)) from None
        if not line:
            raise HandoverFailed(f"the other process ended before it was {stage}")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise HandoverFailed(f"the other process sent an invalid message: {line[:100]!r}")
        if message.get("stage") != stage:
            raise HandoverFailed(str(message.get("reason") or message))
        return message

    def send(self, stage: str, **more: object) -> None:
        """Send a message; never blocks, because it is small and the channel empty. A peer that is
        gone is ignored."""
        line = json.dumps({"stage": stage, **more}).encode() + b"\n"
        try:
            self._sending.send(line)
        except OSError as error:
            logger.info("handover: the other process is gone", extra={"error": str(error)})

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
        """Start the program that is on disk now, with this process' arguments. It finds the
        `sockets` by their labels. Raises `HandoverFailed`."""
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
        """Wait until it has done all it can while we serve. Raises `HandoverFailed`."""
        await self._channel.receive("prepared", PREPARED)

    async def take_over(self) -> list[str]:
        """Let it serve; returns the labels of the sockets that it uses. Raises
        `HandoverFailed`."""
        self._channel.send("yours")
        message = await self._channel.receive("serving", SERVING)
        return [str(label) for label in message.get("taken", ())]

    async def end(self) -> None:
        """Kill it, and wait until it is gone and has released whatever it had opened."""
        self._channel.close()
        self._process.kill()
        await asyncio.shield(asyncio.to_thread(self._process.wait))

    def leave(self) -> None:
        """It serves, and is on its own from now on."""
        self._channel.close()
        self._process.returncode = 0  # otherwise Python would warn that it is still running


class Predecessor:
    """The old process, as the new one sees it."""

    def __init__(self, control: int, sockets: Sequence[tuple[str, socket.socket]]) -> None:
        self._channel = _Channel(socket.socket(fileno=control))
        self.sockets = sockets

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str] = os.environ
    ) -> Predecessor | None:
        """The predecessor; None if this process was started in the usual way. Raises `OSError`."""
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
        """Report that we are prepared, and wait until the stores and callers are ours. Raises
        `HandoverFailed` if the old process has given up on us, or has ended."""
        self._channel.send("prepared")
        await self._channel.receive("yours", None)

    def serving(self, taken: Sequence[str]) -> None:
        """Report that we serve, with these of the sockets."""
        self._channel.send("serving", taken=list(taken))
        self._channel.close()

    def failed(self, reason: str) -> None:
        """Report that we cannot serve."""
        self._channel.send("failed", reason=reason[:4000])
