"""The container image, built and run step by step on a bare Debian: `make image-test`.

Not a part of `make test`: it needs root, debootstrap and, the first time, some minutes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests import image_kit
from tests.deployment import ROOT

REQUIREMENTS = ROOT / "image-requirements.txt"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "IMAGE_TEST" not in os.environ, reason="the image is built and run by: make image-test"
    ),
]


def wheels() -> Path:
    """The wheels of image-requirements.txt, as this machine's pip finds them."""
    place = image_kit.CACHE / "wheels"
    stamp = place / "requirements.txt"
    if not stamp.exists() or stamp.read_bytes() != REQUIREMENTS.read_bytes():
        shutil.rmtree(place, ignore_errors=True)
        image_kit.done(
            *(sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps"),
            *("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"),
            *("--platform=manylinux_2_17_x86_64", "--platform=manylinux_2_12_x86_64"),
            *("--platform=manylinux_2_5_x86_64", "--dest", place, "--requirement", REQUIREMENTS),
        )
        shutil.copy(REQUIREMENTS, stamp)
    return place


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> image_kit.Build:
    """The image, every instruction of the Dockerfile carried out."""
    if reason := image_kit.missing():
        pytest.skip(reason)
    wheels()
    folder = tmp_path_factory.mktemp("image")
    pip = "[global]\nno-index = true\nfind-links = /lent\n"
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return image_kit.Build(dockerfile, ROOT, folder, pip)


def test_the_image_is_built_without_a_compiler(image: image_kit.Build) -> None:
    """Debian has none, the proxy is installed all the same, and no wheel or secret stays behind."""
    for stage in image.stages.values():
        assert shutil.which("cc", path=str(stage.root / "usr/bin")) is None
    assert not image.stage.inside("/etc/pip.conf").exists()
    assert image.stage.inside("/usr/local/bin/reliability-proxy").exists()
    assert list(image.stage.inside("/wheels").iterdir()) == []


def test_every_module_loads_in_the_image(image: image_kit.Build) -> None:
    """Shared libraries included: libmagic and FFmpeg came along in their wheels."""
    program = (
        "import pkgutil, importlib, proxy, pylibmagic, magic, av;"
        "print(magic.from_buffer(b'RIFF0000WAVEfmt ', mime=True), av.__version__);"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(proxy.__path__, 'proxy.')"
        " if not m.name.endswith(('__main__', '.pytest_plugin'))]"
    )
    printed, _ = image.run(shlex.join(["python", "-c", program]))
    assert printed.startswith("audio/")


def test_the_image_runs_as_nobody_on_a_read_only_root(image: image_kit.Build) -> None:
    """As 10001 with the volumes alone: healthy by its own check, its files written, stopped."""
    commands = image.stage.commands
    check = shlex.join(commands["HEALTHCHECK"])
    script = f"""
        id -u; id -g
        touch /etc/written 2>/dev/null && exit 90
        reliability-proxy check || exit 91
        {shlex.join(commands["ENTRYPOINT"] + commands["CMD"])} >/data/log 2>&1 &
        rounds=0
        # Alive comes before ready: a start that is ended has no files yet.
        until {check} && {check} --ready; do
          rounds=$((rounds + 1)); [ $rounds -lt 90 ] || {{ cat /data/log; exit 92; }}; sleep 0.5
        done
        kill -TERM $!
        wait $! || exit 93
    """
    printed, volumes = image.run(script)
    assert printed.splitlines()[:2] == ["10001", "10001"]
    log = [json.loads(line) for line in (volumes["/data"] / "log").read_text().splitlines()]
    assert log
    assert {"jobs.db", "trace.db"} <= {file.name for file in volumes["/data"].iterdir()}
    assert (volumes["/data"] / "jobs.db").stat().st_uid == 10001
