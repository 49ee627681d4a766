"""Sockets that a service manager gives, and what it is notified of."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http1 import RawClient, Upstream, free_port, get, wait_until
from tests.http1.site import CATCH_ALL

# What a manager does between fork and exec.
GIVE = """
import os, sys
given, names, *command = sys.argv[1:]
if given != "3":
    os.dup2(int(given), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": names}
os.execv(command[0], command)
"""


class Manager:
    """What systemd does: holds a listening socket, starts the service with it, is notified."""

    def __init__(self, directory: Path) -> None:
        self.upstream = Upstream()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(directory / "notify"))
        self._notified.settimeout(60)
        self._address = str(directory / "notify")
        self.file = directory / "proxy.json"
        self.received = directory / "said"
        self.config = {
            "listeners": {"front": {"bind": "fd:front", "routes": CATCH_ALL}},
            "upstreams": {"app": {"targets": [self.upstream.url]}},
            "admin": {"bind": f"127.0.0.1:{free_port()}"},
        }
        self.file.write_text(json.dumps(self.config))

    def start(self, names: str = "front", watchdog: str = "") -> subprocess.Popen[bytes]:
        """The service, with the socket as descriptor 3."""
        command = [sys.executable, "-m", "proxy", "run", "--config", str(self.file)]
        given = str(self.listening.fileno())
        with self.received.open("ab") as received:
            return subprocess.Popen(
                [sys.executable, "-c", GIVE, given, names, *command],
                pass_fds=[self.listening.fileno()],
                env=os.environ | {"NOTIFY_SOCKET": self._address, "WATCHDOG_USEC": watchdog},
                stdout=received,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, message: str) -> str:
        """The next notification that begins with `message`."""
        while True:
            text = self._notified.recv(4096).decode()
            if text.startswith(message):
                return text

    def close(self) -> None:
        """The end of the machine."""
        self.listening.close()
        self._notified.close()
        self.upstream.stop()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A manager that has started nothing yet."""
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_a_restart_with_a_given_socket_refuses_nobody(manager: Manager) -> None:
    """Who connects while no process runs is served by the next one; the manager is notified of
    readiness, of life and of the stop."""
    first = manager.start(watchdog="400000")
    try:
        manager.wait_for("READY=1")
        with RawClient(manager.address) as client:
            client.send(get())
            assert client.response().status == 200
        manager.wait_for("WATCHDOG=1")
        first.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
    finally:
        first.terminate()
        assert first.wait(60) == 0
    manager.wait_for("STOPPING=1")
    with RawClient(manager.address) as client:
        client.send(get())
        second = manager.start()
        try:
            assert client.response().status == 200
        finally:
            second.terminate()
            assert second.wait(60) == 0


def test_an_upgrade_passes_the_given_socket_on(manager: Manager) -> None:
    """The manager learns of its new main process, which has the socket by the same name."""
    first = manager.start(watchdog="400000")
    manager.wait_for("READY=1")
    first.send_signal(signal.SIGUSR2)
    pid = int(manager.wait_for("MAINPID=").partition("=")[2])
    try:
        assert first.wait(60) == 0
        manager.wait_for("WATCHDOG=1")
        with RawClient(manager.address) as client:
            client.send(get())
            assert client.response().status == 200
    finally:
        os.kill(pid, signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), "its end", 60)


@pytest.mark.parametrize("names", ["other", ""])
def test_a_socket_that_was_not_given_is_named(manager: Manager, names: str) -> None:
    """Exit code 1, with the name and those that were given."""
    assert manager.start(names).wait(60) == 1
    received = manager.received.read_text()
    assert "listener front: cannot listen on fd:front: no socket of this name" in received
    assert f"given: {names or 'unknown'}" in received
    assert "Traceback" not in received
