"""`python -m tests.bench`: run the comparison, print and write its report."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.bench import contenders, machine, report
from tests.bench.children import ROOT, ChildError, Cores
from tests.bench.measures import DIRECT
from tests.bench.race import QUICK, Pace, Race
from tests.bench.targets import verdicts

DOCUMENT = ROOT / "docs" / "explanation" / "benchmarks.md"


def main(argv: list[str] | None = None) -> int:
    """0 when ours was measured, reached targets or not; 1 when it could not be; 2 for bad usage;
    130 when interrupted."""
    args = _arguments(argv)
    try:
        chosen = contenders.chosen(args.only.split(",") if args.only else None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)

    pace = QUICK if args.quick else Pace()
    if args.rounds:
        pace = replace(pace, rounds=args.rounds)
    cores = Cores.of_machine()
    try:
        missing = machine.install_missing()
        described = machine.describe(cores)
        with tempfile.TemporaryDirectory(prefix="bench-") as workdir:
            race = Race(chosen, pace, cores, Path(workdir), _report)
            for text in missing:
                race.results.remark(DIRECT, text)
            race.run()
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
    except ChildError as error:
        print(f"the benchmark's own upstream: {error}", file=sys.stderr)
        return 1

    run = report.Run(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        command=shlex.join(["python", "-m", "tests.bench", *(argv or sys.argv[1:])]),
        rounds=race.rounds,
        machine=described,
        contenders=[(c.name, c.version(), c.note) for c in chosen if c.available() is None],
        results=race.results,
        verdicts=verdicts(race.results, contenders.OURS),
        ours=contenders.OURS,
    )
    print(report.markdown(run))
    report.write(run, args.out)
    _report(f"written: {args.out} and {args.out.with_suffix('.json')}")
    if args.update_docs:
        DOCUMENT.write_text(report.replace_results(DOCUMENT.read_text(), report.markdown(run)))
        _report(f"updated: {DOCUMENT}")
    expected = any(contender.name == contenders.OURS for contender in chosen)
    return 1 if expected and contenders.OURS not in race.results.samples else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="The proxy beside its peers, on one core each."
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of about a minute")
    parser.add_argument(
        "--only", metavar="NAME,…", help="these contenders; see the docs' benchmarks.md"
    )
    parser.add_argument("--rounds", type=_positive, metavar="N", help="instead of 3 (quick: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "bench-results" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.md",
        metavar="FILE",
        help="the Markdown report; a JSON of all samples goes beside it",
    )
    parser.add_argument(
        "--update-docs", action="store_true", help="put the report into the docs' benchmarks.md"
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # A second signal must not cut the stopping of the children short.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
