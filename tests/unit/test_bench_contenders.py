"""The benchmark's contenders, self-checks and registries."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from proxy.demo.redis_server import free_port
from tests.bench import children, contenders, micro, rawhttp, self_check, small_upstream
from tests.bench.children import ChildError
from tests.bench.contenders.base import Place
from tests.bench.contenders.envoy import configuration
from tests.http1 import PATIENCE


def test_names_choose_contenders_in_table_order() -> None:
    """`--only` takes optional ones too; without it the standard ones run."""
    names = [contender.name for contender in contenders.chosen(["nginx-64k", "nginx"])]
    assert names == ["nginx", "nginx-64k"]
    assert contenders.chosen(None) == list(contenders.STANDARD)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """A typing mistake does not silently measure less."""
    with pytest.raises(ValueError, match=r"no contender ngnix; there are: .*nginx"):
        contenders.chosen(["ngnix"])


def test_envoy_configuration_is_json_with_our_ports(tmp_path: Path) -> None:
    """Listener, admin and cluster each get their port."""
    text = json.dumps(configuration(Place(21001, 21002, 21003, tmp_path, 0), "/log"))
    for port in (21001, 21002, 21003):
        assert f'"port_value": {port}' in text


def test_access_lines_are_the_json_objects_with_a_status() -> None:
    """Other log lines are passed over, and the last one may still be being written."""
    text = '{"message": "started"}\n{"status": 200, "correlation_id": "x"}\n{"status": 20'
    assert self_check.access_lines(text) == [{"status": 200, "correlation_id": "x"}]


def test_a_log_line_that_is_not_json_fails_the_duty() -> None:
    """`key=value` or a traceback in the log is no JSON log."""
    with pytest.raises(self_check.SelfCheckError, match="not JSON"):
        self_check.access_lines("status=200\n")


def test_a_log_holds_a_line_for_each_request(tmp_path: Path) -> None:
    """More lines are fine: the load generator does not count what it cut off at its end."""
    log = tmp_path / "access.log"
    log.write_text("{}\n{}\n{}\n")
    assert self_check.logged_all(log, 2)
    assert self_check.logged_all(log, 3)


def test_a_core_is_used_more_and_more() -> None:
    """Time of a core only grows, and a core that does not exist is an error."""
    core = children.Cores.of_machine().proxy
    assert 0 < children.core_seconds(core) <= children.core_seconds(core)
    with pytest.raises(ChildError, match="no core 4096"):
        children.core_seconds(4096)


def test_the_small_upstream_without_nginx_answers(tmp_path: Path) -> None:
    """Two requests in one segment get two answers, on the uvloop protocol."""
    port = free_port()
    argv = children.module("tests.bench.small_upstream", f"--port={port}")
    core = children.Cores.of_machine().upstream
    child = children.start("small", argv, core=core, workdir=tmp_path)
    with children.running(child, port):
        client = rawhttp.connect(port, timeout=10)
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n" * 2)
        for _ in range(2):
            assert client.read_body(client.read_head()).decode() == small_upstream.BODY
        client.sock.close()
    assert child.process.returncode is not None


def test_run_reports_why_a_child_failed(tmp_path: Path) -> None:
    """Exit code and last words."""
    argv = [sys.executable, "-c", "import sys; sys.exit('no luck')"]
    with pytest.raises(ChildError, match="code 1: no luck"):
        children.run("child", argv, core=children.Cores.of_machine().load, workdir=tmp_path,
                     timeout=120)  # fmt: skip


def test_stop_ends_the_whole_group(tmp_path: Path) -> None:
    """A child's own child does not survive it."""
    script = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True); p.wait()"
    )
    child = children.start(
        "parent",
        [sys.executable, "-c", script],
        core=children.Cores.of_machine().load,
        workdir=tmp_path,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not child.output.read_text().endswith("\n"):
            assert child.process.poll() is None
            assert time.monotonic() < deadline
        grandchild = int(child.output.read_text())
        assert grandchild in child.tree()
        assert child.rss() > 0
        assert child.rss_peak() > 0
    finally:
        child.stop()
    state = Path(f"/proc/{grandchild}/status")
    assert not state.exists() or "zombie" in state.read_text()


def test_micro_selects_by_words_and_times_each_piece(capsys: pytest.CaptureFixture[str]) -> None:
    """Every registered piece runs; an unknown word is bad usage."""
    assert micro.main(["--time", "0.001"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(micro.selected([]))
    assert micro.main(["no such piece"]) == 2


def test_micro_titles_are_unique() -> None:
    """Two pieces of one name would hide each other."""
    with pytest.raises(ValueError, match="two pieces"):
        micro.micro(micro.selected([])[0])(lambda: lambda: None)
