"""The machine: its description, and the tools that the benchmark needs from its packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.children import Cores
from tests.bench.contenders.base import first_line

_PACKAGES = ("nginx", "haproxy", "wrk")  # Debian's names are those of the programs
_POLICY = Path("/usr/sbin/policy-rc.d")


def describe(cores: Cores) -> dict[str, str]:
    """Label and value, for the report."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB",
        "cores": f"proxy on {cores.proxy}, load generator on {cores.load}, "
        f"upstream on {cores.upstream}",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, {_python_build()}",
        "load generator": " ".join(first_line("wrk", "-v").split()[:2]) or "no wrk",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def _python_build() -> str:
    """How the interpreter was built: it makes a difference of a sixth to what is written in it."""
    if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""):
        return "built with --enable-optimizations"
    # A distribution's build has its own way to use profiles, and does not say so there.
    return "the system's" if sys.base_prefix == "/usr" else "built without --enable-optimizations"


def install_missing() -> list[str]:
    """Install with apt-get what is missing of nginx, HAProxy and wrk. Where that is not possible:
    one remark each, and the benchmark goes on without."""
    missing = [name for name in _PACKAGES if shutil.which(name) is None]
    if not missing:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return [f"{name} is not installed, and only root with apt-get could" for name in missing]
    with _no_services_started():
        for argv in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        ):
            try:
                subprocess.run(
                    argv,
                    env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    timeout=300,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                break
    return [f"{name} could not be installed" for name in missing if shutil.which(name) is None]


@contextmanager
def _no_services_started() -> Iterator[None]:
    """Debian starts a service as it installs it, unless policy-rc.d forbids it (101)."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
