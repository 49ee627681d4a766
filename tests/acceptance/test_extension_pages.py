"""docs/how-to/testing.md is run as it stands: a folder with its files, and pytest inside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import proxy

ROOT = Path(proxy.__file__).parent.parent

_FILE = re.compile(r"^```(?:python|yaml|ini) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_files(page: str, folder: Path) -> list[str]:
    """Every block of the page whose info string names a file; their names."""
    files = dict(_FILE.findall((ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(files)


def run(folder: Path, *arguments: str) -> str:
    """What Python prints, run in that folder; fails with it."""
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **plugins},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(folder: Path) -> str:
    """The tests of the folder, with the plugin and pytest-aiohttp's."""
    return run(
        folder,
        *("-m", "pytest", "-q", "-p", "proxy.pytest_plugin", "-W", "error"),
        *("-p", "pytest_asyncio.plugin", "-p", "pytest_aiohttp.plugin"),
    )


@pytest.fixture(scope="module")
def testing_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of docs/how-to/testing.md."""
    folder = tmp_path_factory.mktemp("testing")
    write_files("testing.md", folder)
    return folder


def test_the_tests_of_the_testing_page_pass(testing_page: Path) -> None:
    """Each test of the page passes, and none is skipped or forgotten."""
    assert re.search(r"^4 passed", run_tests(testing_page), re.MULTILINE)


def test_the_program_of_the_testing_page_runs(testing_page: Path) -> None:
    """It prints the app's answer."""
    assert run(testing_page, "program.py") == "200 hello\n"


def test_the_stages_of_the_extending_page_work(tmp_path: Path) -> None:
    """The three stages and the one that waits, by their own tests, as printed."""
    assert len(write_files("extending.md", tmp_path)) == 5
    write_files("testing.md", tmp_path)  # for its pytest.ini
    for name in ("test_app.py", "test_client.py"):
        (tmp_path / name).unlink()
    (tmp_path / "proxy.yaml").unlink()
    write_files("extending.md", tmp_path)
    assert re.search(r"^5 passed", run_tests(tmp_path), re.MULTILINE)
