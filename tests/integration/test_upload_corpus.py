"""What the ffmpeg program writes, codec by container: all of it accepted, and measured rightly."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.config.listeners import Upload
from proxy.uploads.formats.families import NAMES
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.rules import UploadRules
from tests.uploads.corpus import FILES, FILMS, write
from tests.uploads.drive import form, new_spool, part, upload

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def validator() -> AsyncIterator[UploadRules]:
    """Every family."""
    pool = ProbePool()
    await pool.start()
    yield UploadRules(Upload(types=tuple(NAMES)), pool, new_spool())
    await pool.stop()


def written(path: Path, arguments: str) -> bytes:
    """The file, or a skip where this ffmpeg lacks the encoder."""
    try:
        return write(path, arguments)
    except subprocess.CalledProcessError:
        pytest.skip("this ffmpeg cannot write it")


@pytest.mark.parametrize("name", FILES)
async def test_true_audio_is_accepted(validator: UploadRules, tmp_path: Path, name: str) -> None:
    """Five seconds, give or take the encoder's padding."""
    data = written(tmp_path / name, FILES[name])
    outcome = await upload(validator, form(part(data)))
    assert outcome.code == "accepted", outcome.facts
    assert outcome.facts["duration"] == pytest.approx(5.0, abs=0.3)


@pytest.mark.parametrize("name", FILMS)
async def test_films_are_refused(validator: UploadRules, tmp_path: Path, name: str) -> None:
    """A video track in a container that may hold audio, or a container that may not."""
    data = written(tmp_path / name, FILMS[name])
    assert (await upload(validator, form(part(data)))).code == "upload_type_rejected"
