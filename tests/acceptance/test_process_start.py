"""Starting with something wrong: one clear message each, an exit code, no traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.http1 import free_port

GOOD: dict[str, Any] = {
    "listeners": {
        "front": {
            "bind": "127.0.0.1:1",
            "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
        }
    },
    "upstreams": {"app": {"targets": ["http://127.0.0.1:2"]}},
}


def start(file: Path) -> tuple[int, str]:
    """Run the proxy on `file`: exit code and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "run", "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ""),
        ("listeners: [\n", ""),
        ("just words\n", ""),
        ("listeners: {}\nlisteners: {}\nupstreams: {}\n", "listeners"),
        (json.dumps(GOOD | {"listners": {}}), "listeners"),
        (json.dumps(GOOD | {"upstreams": {"app": {"targets": ["ftp://x"]}}}), "targets"),
        (json.dumps(GOOD | {"upstreams": {"other": {"targets": ["http://x"]}}}), "app"),
        (json.dumps(GOOD | {"drain_timeout": "fast"}), "drain_timeout"),
        ("\x00\x01\x02", ""),
        (json.dumps(GOOD | {"logging": {"output": "${NOT_SET_ANYWHERE}"}}), "NOT_SET_ANYWHERE"),
    ],
    ids=["empty", "not yaml", "a string", "duplicate key", "unknown key", "bad target",
         "unknown upstream", "bad duration", "binary", "unset variable"],
)  # fmt: skip
def test_bad_config_is_named_and_ends_with_2(tmp_path: Path, text: str, message: str) -> None:
    """Exit code 2; the message names the file and the key."""
    file = tmp_path / "proxy.yaml"
    file.write_text(text)
    code, errors = start(file)
    assert code == 2
    assert "Traceback" not in errors
    assert "proxy.yaml" in errors
    assert message in errors


def test_missing_config_ends_with_2(tmp_path: Path) -> None:
    """Exit code 2 and the path."""
    code, errors = start(tmp_path / "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in errors
    assert "Traceback" not in errors


def test_directory_as_config_ends_with_2(tmp_path: Path) -> None:
    """A directory is no file."""
    code, errors = start(tmp_path)
    assert code == 2
    assert "Traceback" not in errors


def test_unreadable_certificate_ends_with_2(tmp_path: Path) -> None:
    """A certificate file that is missing or not a certificate is named."""
    front = GOOD["listeners"]["front"]
    for cert in (tmp_path / "missing.pem", tmp_path / "proxy.json"):
        tls = {"cert": str(cert), "key": str(cert)}
        config = GOOD | {"listeners": {"front": front | {"tls": tls}}}
        (tmp_path / "proxy.json").write_text(json.dumps(config))
        code, errors = start(tmp_path / "proxy.json")
        assert code == 2, errors
        assert str(cert) in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("door", ["listener", "admin"])
def test_port_in_use_ends_with_1(tmp_path: Path, door: str) -> None:
    """Exit code 1; the message names the address. No half-started proxy stays behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        used, free = taken.getsockname()[1], free_port()
        ports = (used, free) if door == "listener" else (free, used)
        front = GOOD["listeners"]["front"] | {"bind": f"127.0.0.1:{ports[0]}"}
        config = GOOD | {"listeners": {"front": front}, "admin": {"bind": f"127.0.0.1:{ports[1]}"}}
        (tmp_path / "proxy.json").write_text(json.dumps(config))
        code, errors = start(tmp_path / "proxy.json")
    assert code == 1, errors
    assert str(used) in errors
    assert "Traceback" not in errors
