"""Modes of the files that hold what callers sent."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.clock import ManualClock
from proxy.core.process.private_files import close_to_others, make, make_directory
from proxy.core.sqlite.file import SqliteFile
from proxy.trace.sql import SCHEMA


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """One that would open everything, the usual ones, and one that would open nothing."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    """Its permissions."""
    return path.stat().st_mode & 0o777


def test_a_new_file_is_its_owners(umask: int, tmp_path: Path) -> None:
    """0600, whatever the umask; and nobody but the group looks into a new directory."""
    make(tmp_path / "jobs.db")
    assert mode(tmp_path / "jobs.db") == 0o600
    if umask != 0o777:
        make_directory(tmp_path / "a" / "b")
        assert mode(tmp_path / "a" / "b") & 0o027 == 0


async def test_a_database_and_what_stands_beside_it(umask: int, tmp_path: Path) -> None:
    """SQLite's log and index have the mode of the database."""
    path = tmp_path / "trace.db"
    file = SqliteFile(path, SCHEMA, ManualClock(), lambda: None)
    await file.open()
    try:
        for name in ("trace.db", "trace.db-wal", "trace.db-shm"):
            assert mode(tmp_path / name) == 0o600, name
    finally:
        await file.close()


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o640), (0o666, 0o640), (0o640, 0o640), (0o600, 0o600)]
)
async def test_a_database_of_an_earlier_release(before: int, after: int, tmp_path: Path) -> None:
    """It loses what others had, and keeps what the group had."""
    path = tmp_path / "trace.db"
    file = SqliteFile(path, SCHEMA, ManualClock(), lambda: None)
    await file.open()
    await file.close()
    path.chmod(before)
    await file.open()
    await file.close()
    assert mode(path) == after


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    """What stands where a new file would be made is neither emptied nor followed."""
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE a (b)")
    before = other.read_bytes()
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "nowhere")
    make(other)
    make(link)
    assert other.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()
    close_to_others(tmp_path / "missing")
