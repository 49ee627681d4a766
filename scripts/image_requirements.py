"""Writes image-requirements.txt: what the image installs, by version and by hash.

    make image-requirements

Versions come from constraints.txt. The hashes are those of the wheels that pip would choose for the
image's Python on both processors, from the default index alone: a wheel that somebody has built at
home under the same name has another hash, and would fail every build elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "image-requirements.txt"
PYTHON = "3.11"  # of the base in the Dockerfile
# glibc 2.36 in Debian 12; pip does not add the older ones by itself.
GLIBC = ("2_36", "2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
MACHINES = ("x86_64", "aarch64")
# Of redis on Python before 3.11.3, as in Debian 12; pip asks the Python that runs this script.
OLDER_PYTHON = ("async-timeout",)
NOTE = """\
# Written by scripts/image_requirements.py (`make image-requirements`): what the image installs.
# Versions are those of constraints.txt; setuptools builds the proxy's own wheel.
"""


def resolved(machine: str) -> dict[str, tuple[str, str]]:
    """What pip would install on this kind of machine: name -> version and SHA-256."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["otel"],
        *project["build-system"]["requires"],
        *OLDER_PYTHON,
    ]
    platforms = [f"--platform=manylinux_{version}_{machine}" for version in GLIBC]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report=-", "--only-binary=:all:", "--target=/nowhere", f"--python-version={PYTHON}"),
        *("--implementation=cp", f"--constraint={ROOT / 'constraints.txt'}", *platforms, *wanted),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"}
    environment["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = {}
    for item in json.loads(done.stdout)["install"]:
        name = item["metadata"]["name"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        found[name] = (item["metadata"]["version"], digest)
    return found


def main() -> None:
    """Resolve for each processor, and write names in alphabetical order."""
    each = [resolved(machine) for machine in MACHINES]
    lines = [NOTE]
    for name in sorted(each[0].keys() | each[1].keys(), key=str.lower):
        (version,) = {found[name][0] for found in each if name in found}
        digests = sorted({found[name][1] for found in each if name in found})
        hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in digests)
        lines.append(f"{name}=={version}{hashes}\n")
    TARGET.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
