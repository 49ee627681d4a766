"""`python -m tests.fuzz`: search for bytes that break a target, guided by coverage."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).parents[2]
NAMES = ("request-head", "response-head", "chunked-body", "form")
LONGEST = 2048  # bytes of an input


def main(argv: list[str] | None = None) -> int:
    """0 when nothing was found in the time; else the status of the first target that broke, whose
    input is in .fuzz/."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--input", type=Path, help="run the target on this file only")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := set(args.targets) - set(NAMES):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if args.inside or args.input:
        _fuzz(args.targets[0], args.seconds, args.input)
        return 0
    for name in args.targets:  # a process each: libFuzzer ends with its process
        command = [sys.executable, "-m", "tests.fuzz", name, "--inside"]
        code = subprocess.call([*command, f"--seconds={args.seconds}"], cwd=TREE)
        if code:
            return code
    return 0


def _fuzz(name: str, seconds: int, file: Path | None) -> None:
    """Does not return: libFuzzer ends the process."""
    try:  # not a plain import: it is in an extra of its own, which tests do not need
        atheris = importlib.import_module("atheris")
    except ModuleNotFoundError:
        sys.exit("atheris is missing. `make fuzz` installs it, on Python 3.11 to 3.13.")
    with atheris.instrument_imports(include=["proxy"]):
        targets = importlib.import_module("tests.fuzz.targets")
    target = targets.TARGETS[name]
    corpus = TREE / ".fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = corpus.with_suffix(".dict")
    words.write_text("\n".join(_quoted(word) for word in target.words), encoding="ascii")
    if file is not None:
        atheris.Setup([name, str(file)], target.check)
    else:
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-dict={words}"]
        options += [f"-artifact_prefix={TREE / '.fuzz' / name}-", "-timeout=20"]
        atheris.Setup([name, *options, str(corpus)], target.check)
    print(f"== {name}", flush=True)
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    """As in libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


if __name__ == "__main__":
    sys.exit(main())
