"""The commands that need no running proxy: exit codes, one clear message, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import __version__
from proxy.cli import main

ROOT = Path(__file__).parents[2]
READY = ROOT / "config" / "make-video.yaml"
COMMANDS = [
    [],
    ["run"],
    ["check"],
    ["schema"],
    ["demo"],
    ["healthcheck"],
    ["jobs"],
    ["jobs", "show"],
    ["breakers"],
    ["breakers", "open"],
]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_config_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROXY_CONFIG", raising=False)


def call(*arguments: str) -> int:
    """The exit code of a command run in this process, whichever way it ends."""
    try:
        return main.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str], capsys: Capture) -> None:
    """`--help` answers with 0 everywhere; commands come with examples."""
    assert call(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert "usage: reliability-proxy" in shown
    assert "examples:" in shown or len(command) > 1


def test_version(capsys: Capture) -> None:
    """`--version` names the program and its version."""
    assert call("--version") == 0
    assert capsys.readouterr().out == f"reliability-proxy {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run"],
        ["check"],
        ["check", "--nonsense"],
        ["jobs"],
        ["jobs", "show"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--limit", "many"],
        ["trace", "--limit", "-1"],
        ["breakers", "open", "yt", "--for", "10"],
        ["completion", "powershell"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_two(arguments: list[str], capsys: Capture) -> None:
    """Bad usage ends with 2 and a line on stderr."""
    assert call(*arguments) == 2
    assert "reliability-proxy" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_the_commands(shell: str, capsys: Capture) -> None:
    """The script for each shell has every command."""
    assert call("completion", shell) == 0
    assert "healthcheck" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_the_shell_reads(shell: str, capsys: Capture) -> None:
    """The shell itself finds no mistake in it."""
    if (found := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    assert call("completion", shell) == 0
    script = capsys.readouterr().out
    checked = subprocess.run([found, "-n"], input=script, text=True, check=False, timeout=60)
    assert checked.returncode == 0


def test_check_of_a_sound_config(capsys: Capture) -> None:
    """A sound config gets one line on stdout and 0."""
    assert call("check", "--config", str(READY)) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{READY}: ok (4 listeners, 12 routes, 4 upstreams, 1 mirror)\n"
    assert shown.err == ""


def test_check_takes_the_file_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """`PROXY_CONFIG` stands in for `--config`."""
    monkeypatch.setenv("PROXY_CONFIG", str(READY))
    assert call("check") == 0
    assert "ok" in capsys.readouterr().out


def test_check_reports_every_problem(tmp_path: Path, capsys: Capture) -> None:
    """Each problem is a line `FILE:LINE: key: expected ..., found ...`, and the code is 2."""
    file = tmp_path / "bad.yaml"
    file.write_text("listeners: {}\nupstreams: {}\nnonsense: 1\n")
    assert call("check", "--config", str(file)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split(": expected")[0] for line in shown.err.splitlines()] == [
        f"{file}:1: listeners",
        f"{file}:2: upstreams",
        f"{file}:3: nonsense",
    ]


def test_check_in_json(tmp_path: Path, capsys: Capture) -> None:
    """`--json` gives the same facts to programs."""
    assert call("check", "--json", "--config", str(tmp_path / "gone.yaml")) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["problems"][0]["found"] == "no such file or directory"
    assert call("check", "--json", "--config", str(READY)) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": [], "warnings": []}


def test_check_shows_warnings_on_stderr(tmp_path: Path, capsys: Capture) -> None:
    """What is legal but hardly meant is a warning; the code stays 0."""
    file = tmp_path / "c.yaml"
    file.write_text(
        "listeners: {a: {bind: ':0', routes: [{name: all, path: /, upstream: u}]}}\n"
        "upstreams: {u: {targets: [http://a]}, v: {targets: [http://b]}}\n"
    )
    assert call("check", "--config", str(file)) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{file}: ok (1 listener, 1 route, 2 upstreams, 1 warning)\n"
    assert shown.err == f"{file}:2: upstreams.v: warning: no route leads here\n"


def test_schema_is_the_committed_one(capsys: Capture) -> None:
    """`schema` prints what the YAML files refer to."""
    assert call("schema") == 0
    assert capsys.readouterr().out == (ROOT / "config" / "schema.json").read_text()


@pytest.mark.parametrize(
    ("raised", "expected"), [(KeyboardInterrupt(), 130), (OSError(98, "address in use"), 1)]
)
def test_interruptions_end_without_a_traceback(
    raised: BaseException, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Ctrl-C is 130; a failure of the system is 1 and one line."""

    def command(options: object) -> int:
        raise raised

    monkeypatch.setattr(main, "_schema", command)
    assert call("schema") == expected
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_the_program_refuses_a_bad_config(tmp_path: Path) -> None:
    """The real process prints one message and no traceback, whatever the locale."""
    file = tmp_path / "größe.yaml"
    file.write_text("")
    ended = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "--config", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "found an empty file" in ended.stderr


def test_a_closed_pipe_is_no_crash() -> None:
    """`schema | head -1` leaves nothing on stderr."""
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m proxy schema | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout == "{\n"
    assert ended.stderr == ""
