"""Sockets from others find their listeners; the service manager is notified at any address."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.config.units import Bind
from proxy.core.process.handover import ends_its_container
from proxy.core.process.systemd import Notifier, given_sockets
from proxy.server.listening import Given, bound, label

ANY, HERE = Bind("127.0.0.1", 0), Bind("127.0.0.1", 1)


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Two that listen on ports of their own."""
    two = [*bound(ANY), *bound(ANY)]
    yield two
    for one in two:
        one.close()


def test_listeners_of_any_port_get_their_own_sockets(sockets: list[socket.socket]) -> None:
    """By name; a new listener gets a new socket, not one that another has left."""
    names = [(label("a", ANY), sockets[0]), (label("b", ANY), sockets[1])]
    given = Given(inherited=names)
    assert given.open("b", ANY) == [sockets[1]]
    (new,) = given.open("c", ANY)
    assert new not in sockets
    new.close()
    assert given.open("a", ANY) == [sockets[0]]
    assert given.taken == [label("b", ANY), label("a", ANY)]


def test_a_renamed_listener_gets_the_socket_of_its_address(sockets: list[socket.socket]) -> None:
    """Once; what nobody wants is closed."""
    given = Given(inherited=[(label("old", HERE), sockets[0]), (label("x", ANY), sockets[1])])
    assert given.open("new", HERE) == [sockets[0]]
    given.close_rest()
    assert sockets[1].fileno() == -1


def test_a_named_socket_stays_for_the_next_reload(sockets: list[socket.socket]) -> None:
    """Each listener gets a descriptor of its own, and a successor the name."""
    given = Given(named=[("front", sockets[0])])
    for _ in range(2):
        (one,) = given.open("web", Bind("", 0, "front"))
        assert one.getsockname() == sockets[0].getsockname()
        one.close()
    again = Given(inherited=given.named())
    again.open("web", Bind("", 0, "front"))[0].close()
    with pytest.raises(OSError, match="given: front"):
        given.open("web", Bind("", 0, "back"))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_sockets_of_other_processes_are_left_alone(environment: dict[str, str]) -> None:
    """The variables may be an ancestor's; our children do not see them either way."""
    assert given_sockets(environment) == []
    assert environment == {}


@pytest.mark.parametrize("abstract", [False, True])
def test_notifications(tmp_path: Path, abstract: bool) -> None:
    """At a path or at an abstract address."""
    name = f"reliability-proxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        address = f"@{name}" if abstract else name
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
        assert notifier.watchdog == 15
        notifier.notify(MAINPID=7, READY=1)
        assert manager.recv(100) == b"MAINPID=7\nREADY=1"


@pytest.mark.parametrize("address", ["", "tcp:1", "/nowhere/notify"])
def test_a_manager_that_is_not_there_does_not_matter(address: str) -> None:
    """Nothing is raised; the watchdog of another process is not ours."""
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    notifier.notify(READY=1)
    assert notifier.watchdog is None


def test_an_init_of_a_container_ends_with_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's `init: true`; systemd goes on."""
    first = tmp_path / "comm"
    monkeypatch.setattr(os, "getppid", lambda: 1)
    for name, ends in (("docker-init", True), ("systemd", False)):
        first.write_text(f"{name}\n")
        assert ends_its_container(first) is ends
    monkeypatch.setattr(os, "getppid", lambda: 2)
    first.write_text("docker-init\n")
    assert not ends_its_container(first)
