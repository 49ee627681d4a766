"""Carries out the Dockerfile without a container engine: on a bare Debian root, in a chroot.

1. The root comes from debootstrap, once, from wherever this machine's apt takes its packages, and
   is kept in the user's cache. It has Debian's Python of the image's version, and no compiler.
2. `RUN` has namespaces of its own for mounts, processes and network: what it needs and did not get
   by a mount or by `COPY`, it cannot fetch.
3. The wheels that a build would download come from a directory that this machine's pip has filled,
   lent as the build's pip configuration: hashes are checked where the Dockerfile checks them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SUITE = "bookworm"  # as in the Dockerfile's base
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reliability-proxy"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """Why it cannot be done here, or None."""
    if os.geteuid() != 0:
        return "needs root (chroot and mounts)"
    absent = [tool for tool in ("debootstrap", "unshare", "apt-get") if shutil.which(tool) is None]
    if absent:
        return f"no {', '.join(absent)} here"
    trial = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True
    )
    return None if trial.returncode == 0 else "namespaces are not permitted here"


def done(*command: object, timeout: float = 600) -> str:
    """A command's output, both streams; fails with all of it."""
    ended = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}"
    return ended.stdout


def debian() -> Path:
    """The cached root; made at the first call, which takes a minute or two."""
    root = CACHE / f"debian-{SUITE}"
    if root.exists():
        return root
    targets = done("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").splitlines()
    mirrors = [line.split()[0] for line in targets if line.split()[1:] == [SUITE]]
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = CACHE / f".debian-{SUITE}.{os.getpid()}"
    wanted = "--include=python3,python3-pip"
    try:
        done("debootstrap", "--variant=minbase", wanted, SUITE, unfinished, *mirrors[:1])
        (unfinished / "usr/bin/python").symlink_to("python3")
        # The image's own Python may be installed into; Debian's asks not to be.
        for note in unfinished.glob("usr/lib/python3.*/EXTERNALLY-MANAGED"):
            note.unlink()
        shutil.rmtree(unfinished / "var/cache/apt/archives")
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


@dataclass(slots=True)
class Stage:
    """A stage of the Dockerfile as far as it has been carried out."""

    root: Path
    workdir: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    volumes: list[str] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def inside(self, path: str) -> Path:
        """Where a path of the image lies here."""
        return self.root / Path(self.workdir, path).relative_to("/")

    def chroot(self, script: str, mounts: list[str], *, identity: str = "") -> str:
        """What a shell script prints in the image, after these commands in its namespaces."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        shell = ["env", "-i", f"--chdir={self.workdir}", *variables, "sh", "-c", script]
        lines = [
            "set -e",
            f"mount -t proc proc {self.root}/proc",
            *mounts,
            f"exec chroot {self.root} {identity} {shlex.join(shell)}",
        ]
        return done(
            *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"),
            *("sh", "-c", "\n".join(lines)),
            timeout=170,
        )


class Build:
    """The stages of a Dockerfile, built below `folder` from the files in `context`."""

    def __init__(self, dockerfile: str, context: Path, folder: Path, pip: str) -> None:
        self.context = context
        self.folder = folder
        self.secret = folder / "pip.conf"
        self.secret.write_text(pip, encoding="utf-8")
        self.stages: dict[str, Stage] = {}
        bare = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
        for line in filter(None, map(str.strip, bare.splitlines())):
            word, _, rest = line.partition(" ")
            getattr(self, f"do_{word.lower()}")(rest.strip())

    @property
    def stage(self) -> Stage:
        """The one that is being built, in the end the image."""
        return list(self.stages.values())[-1]

    def do_arg(self, rest: str) -> None:
        """The base's name: Debian stands in for it, whatever it is."""
        assert rest.startswith("BASE=")

    def do_from(self, rest: str) -> None:
        name = rest.partition(" AS ")[2] or f"stage-{len(self.stages)}"
        root = self.folder / name
        done("cp", "-a", "--reflink=auto", debian(), root)
        self.stages[name] = Stage(root)

    def do_workdir(self, rest: str) -> None:
        self.stage.workdir = rest
        self.stage.inside(".").mkdir(parents=True, exist_ok=True)

    def do_env(self, rest: str) -> None:
        self.stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))

    def do_user(self, rest: str) -> None:
        self.stage.user = rest

    def do_copy(self, rest: str) -> None:
        """As Docker does: of a directory its content."""
        *sources, target = rest.split()
        place = self.stage.inside(target)
        for source in (self.context / name for name in sources):
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, dirs_exist_ok=True, ignore=ignore)
            else:
                to = place / source.name if target.endswith("/") else place
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)

    def do_run(self, rest: str) -> None:
        """In the stage's root, as its user is then: root."""
        mounts = []
        while option := re.match(r"--mount=(\S+)\s+", rest):
            rest = rest[option.end() :]
            facts = dict(pair.split("=", 1) for pair in option[1].split(","))
            target = self.stage.inside(facts["target"])
            if facts["type"] == "secret":
                source = self.secret
                target.touch()
                mounts.append(f"mount --bind {source} {target}")
                wheels = self.stage.inside("/lent")
                wheels.mkdir(exist_ok=True)
                mounts.append(f"mount --bind {CACHE}/wheels {wheels}")
            else:
                source = self.stages[facts["from"]].inside(facts["source"])
                target.mkdir(exist_ok=True)
                mounts.append(f"mount --bind {source} {target}")
        self.stage.chroot(rest, mounts)

    def do_volume(self, rest: str) -> None:
        self.stage.volumes = shlex.split(rest.translate(str.maketrans("[],", "   ")))

    def do_expose(self, rest: str) -> None:
        assert rest

    def do_healthcheck(self, rest: str) -> None:
        self.do_entrypoint(rest.partition(" CMD ")[2], "HEALTHCHECK")

    def do_entrypoint(self, rest: str, name: str = "ENTRYPOINT") -> None:
        self.stage.commands[name] = shlex.split(rest.translate(str.maketrans("[],", "   ")))

    def do_cmd(self, rest: str) -> None:
        self.do_entrypoint(rest, "CMD")

    def run(self, script: str) -> tuple[str, dict[str, Path]]:
        """A shell script in the image as Compose and Kubernetes run it, and the volumes after it.

        A read-only root, the volumes, no capabilities, no new privileges, a network of its own.
        """
        stage = self.stage
        volumes = {}
        mounts = [
            f"mount --bind {stage.root} {stage.root}",
            f"mount -o remount,ro,bind {stage.root}",
            f"mount -t proc proc {stage.root}/proc",
            f"chroot {stage.root} python3 -c {shlex.quote(LOOPBACK)}",
        ]
        for number, path in enumerate(stage.volumes):
            place = volumes[path] = self.folder / f"volume-{number}"
            done("cp", "-a", stage.inside(path), place)  # a new volume is a copy, owner and all
            mounts.append(f"mount --bind {place} {stage.inside(path)}")
        user, _, group = stage.user.partition(":")
        identity = (
            f"setpriv --reuid={user} --regid={group} --clear-groups --no-new-privs"
            " --bounding-set=-all --inh-caps=-all"
        )
        return stage.chroot(script, mounts, identity=identity), volumes


# A new network namespace has its loopback device switched off (SIOCSIFFLAGS, IFF_UP).
LOOPBACK = (
    "import fcntl, socket, struct;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 1))"
)
