"""`python -m tests.mutants`: try a sample of mutants and list those that no test notices."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import queue
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.mutants.coverage import Coverage
from tests.mutants.operators import KINDS, Mutant, mutants
from tests.mutants.report import ALIVE, Tried, summary
from tests.mutants.trial import Copy, Verdict

TREE = Path(__file__).parents[2]
CACHE = TREE / ".mutants"
# The rooms that decide; demo, command line and pages are left to tests of another kind.
ROOMS = ("http1", "forward", "resilience", "jobs", "uploads", "config")


def main(argv: list[str] | None = None) -> int:
    """0 when the sample was tried, whatever survived; 1 when the tests fail without any change; 2
    for bad usage."""
    args = _arguments(argv)
    try:
        sample = _sample(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copies = [Copy(TREE, Path(scratch, str(number))) for number in range(args.jobs)]
        coverage = _coverage(copies[0], args)
        if coverage.failed:
            print(copies[0].output(), file=sys.stderr)
            print("These fail without any change:", *coverage.failed, sep="\n  ", file=sys.stderr)
            return 1
        results = _try_all(sample, copies, coverage, args.timeout)
    print(summary(results))
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "places",
        nargs="*",
        default=[f"proxy/{room}" for room in ROOMS],
        help="files or folders to change, or FILE:LINE or FILE:FIRST-LAST for all mutants of these "
        "lines (default: %(default)s)",
    )
    parser.add_argument("--count", type=int, default=40, help="size of the sample (%(default)s)")
    parser.add_argument("--seed", type=int, help="the same sample again (default: a new one)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these kinds")
    parser.add_argument(
        "--tests",
        action="append",
        help="files or folders of tests, repeatable (default: tests/unit)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (%(default)s)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60,
        help="seconds that one mutant may take, beyond five times what its tests took unchanged "
        "(%(default)s)",
    )
    args = parser.parse_args(argv)
    args.tests = args.tests or ["tests/unit"]
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(10**6)
    return args


def _sample(args: argparse.Namespace) -> list[tuple[str, bytes, Mutant]]:
    """The mutants to try, in the order of files and lines."""
    found = [one for place in args.places for one in _mutants_at(place)]
    if args.kind:
        found = [one for one in found if one[2].kind in args.kind]
    if not found:
        raise ValueError("nothing to change there")
    count = len(found)
    if not all(":" in place for place in args.places):
        count = min(args.count, count)
        found = random.Random(args.seed).sample(found, count)
    print(f"{count} mutants of {' '.join(args.places)}; the same again: --seed {args.seed}")
    return sorted(found, key=lambda one: (one[0], one[2].line, one[2].start))


def _mutants_at(place: str) -> Iterator[tuple[str, bytes, Mutant]]:
    name, _, lines = place.partition(":")
    path = TREE / name
    first, _, last = lines.partition("-")
    wanted = range(int(first), int(last or first) + 1) if lines else None
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if not path.exists() or not path.resolve().is_relative_to(TREE / "proxy"):
        raise ValueError(f"{place}: no file or folder of proxy/")
    for file in files:
        source = file.read_bytes()
        for mutant in mutants(source):
            if wanted is None or mutant.line in wanted:
                yield str(file.relative_to(TREE)), source, mutant


def _coverage(copy: Copy, args: argparse.Namespace) -> Coverage:
    """From the last run, if nothing has changed since."""
    digest = hashlib.sha256(repr(args.tests).encode())
    for folder in ("proxy", "tests"):
        for file in sorted((TREE / folder).rglob("*.py")):
            digest.update(str(file).encode() + file.read_bytes())
    kept = CACHE / digest.hexdigest()[:16]
    if kept.exists():
        coverage: Coverage = pickle.loads(kept.read_bytes())
        return coverage
    print("Running the tests on the unchanged program", flush=True)
    coverage = copy.measure(args.tests, args.jobs)
    if not coverage.failed:
        CACHE.mkdir(exist_ok=True)
        for old in CACHE.iterdir():
            old.unlink()
        kept.write_bytes(pickle.dumps(coverage))
    return coverage


def _try_all(
    sample: list[tuple[str, bytes, Mutant]],
    copies: list[Copy],
    coverage: Coverage,
    timeout: float,
) -> list[Tried]:
    """Every mutant in whichever copy is free; survivors are printed when they are found."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def attempt(path: str, source: bytes, mutant: Mutant) -> Tried:
        tests = coverage.tests_of(path, source, mutant.line)
        if not tests:
            return Tried(path, source, mutant, Verdict.NOT_REACHED, 0)
        seconds = sum(coverage.seconds.get(test, 0.0) for test in tests)
        copy = free.get()
        try:
            verdict = copy.try_out(path, mutant, tests, timeout + 5 * seconds)
        finally:
            free.put(copy)
        return Tried(path, source, mutant, verdict, len(tests))

    results = []
    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            for future in as_completed([pool.submit(attempt, *one) for one in sample]):
                results.append(future.result())
                if results[-1].verdict in ALIVE:
                    print(results[-1].describe(), flush=True)
        except KeyboardInterrupt:
            print("Interrupted: this is what was tried so far", flush=True)
            pool.shutdown(cancel_futures=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
