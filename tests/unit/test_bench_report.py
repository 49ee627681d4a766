"""The benchmark's tables, targets and the section of the document that it rewrites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.__main__ import DOCUMENT
from tests.bench.measures import GROUPS, Group, Measure, Results
from tests.bench.stats import Summary
from tests.bench.targets import Verdict, verdicts

GROUP = Group("Speed", "Higher is better.", (Measure("a", "one"), Measure("b", "two", 1)))


def results_of(**contenders: dict[str, list[float]]) -> Results:
    """Results with these samples."""
    return Results(samples=dict(contenders))


def test_cell_shows_the_range_only_when_there_is_one() -> None:
    """Median (lowest–highest), with thousands separators; a dash for nothing."""
    assert report.cell(Summary(5800.4, 5600, 6100), 0) == "5,800 (5,600–6,100)"
    assert report.cell(Summary(12.0, 12.0, 12.0), 1) == "12.0"
    assert report.cell(None, 0) == "–"


def test_number_has_no_negative_zero() -> None:
    """A small negative added latency is 0, not -0."""
    assert report.number(-0.3, 0) == "0"
    assert report.number(-3.0, 0) == "-3"


def test_table_has_a_ratio_beside_each_measure() -> None:
    """Ours over each; our own row has none; what nobody has measured is left out."""
    results = results_of(ours={"a": [200.0]}, nginx={"a": [400.0]}, none={})
    assert report.table(GROUP, results, ["ours", "nginx", "none"], "ours").splitlines() == [
        "### Speed",
        "",
        "Higher is better.",
        "",
        "|  | one | × |",
        "| --- | ---: | ---: |",
        "| **ours** | 200 |  |",
        "| nginx | 400 | 0.50 × |",
    ]


def test_table_without_us_has_no_ratios() -> None:
    """`--only nginx` still gives a table."""
    table = report.table(GROUP, results_of(nginx={"b": [1.0, 2.0]}), ["nginx"], "ours")
    assert table.splitlines()[-1] == "| nginx | 1.5 (1.0–2.0) |"
    assert "×" not in table


def test_table_of_nothing_is_empty() -> None:
    """A group that was not measured has no heading either."""
    assert report.table(GROUP, Results(), ["ours"], "ours") == ""


def test_keys_are_unique_over_all_groups() -> None:
    """Two measures with one key would mix their samples."""
    keys = [measure.key for group in GROUPS for measure in group.measures]
    assert len(keys) == len(set(keys))


def test_targets_are_judged_by_the_ratio_of_medians() -> None:
    """Exactly 1.3 × Envoy is reached, just below is not, without Envoy it is not measured."""
    ours, envoy = {"get32.rps": [1300.0]}, {"get32.rps": [1000.0]}
    assert verdicts(results_of(p=ours, envoy=envoy), "p")[0].reached is True
    ours["get32.rps"] = [1299.0]
    assert verdicts(results_of(p=ours, envoy=envoy), "p")[0].reached is False
    assert verdicts(results_of(p=ours), "p")[0].reached is None


def test_memory_has_to_be_small_and_flat() -> None:
    """60 MB is under the limit; 60 MB more after a large body is growth."""
    found = verdicts(
        results_of(
            p={
                "memory.slow_clients": [60.0],
                "memory.slow_upstream": [121.0],
                "memory.up1": [50.0],
                "memory.up500": [52.0],
                "memory.down1": [50.0],
                "memory.down500": [110.0],
            }
        ),
        "p",
    )
    assert [verdict.reached for verdict in found[-4:]] == [True, False, True, False]


def test_verdict_reads_as_a_sentence() -> None:
    """Reached or not comes first."""
    assert str(Verdict("at least 2 × x", "1.50 ×", False)) == "NOT reached: at least 2 × x (1.50 ×)"
    assert str(Verdict("at least 2 × x", "", None)) == "not measured: at least 2 × x"


def test_document_keeps_all_but_the_section() -> None:
    """Only what stands between the markers is replaced, and again the next time."""
    before = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nTail\n"
    after = report.replace_results(before, "new\n")
    assert after == f"# Title\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nTail\n"
    assert report.replace_results(after, "new\n") == after


@pytest.mark.parametrize(
    "document",
    [
        "",
        report.BEGIN,
        f"{report.END} {report.BEGIN}",
        f"{report.BEGIN} {report.END} {report.END}",
        f"{report.BEGIN} {report.BEGIN} {report.END}",
    ],
)
def test_document_needs_its_markers(document: str) -> None:
    """A document without its section is refused, not overwritten."""
    with pytest.raises(ValueError, match="once each"):
        report.replace_results(document, "new")


def test_the_committed_document_can_be_updated() -> None:
    """docs/explanation/benchmarks.md has its section."""
    assert "new" in report.replace_results(DOCUMENT.read_text(), "new")


def test_a_disturbed_run_says_so_above_its_verdicts(tmp_path: Path) -> None:
    """Ratios against a contender that had to share its core would flatter us."""
    results = results_of(envoy={"get32.rps": [9.0], "get32.others": [60.0, 4.0, 40.0]})
    run = report.Run("2025-11-24", "x", 1, {}, [], results, verdicts(results, "p"), "p")
    assert "verdicts do not count" in report.markdown(run)
    results.samples["envoy"]["get32.others"] = [60.0, 4.0, 1.0]
    assert "verdicts do not count" not in report.markdown(run)


def test_report_is_written_as_markdown_and_json(tmp_path: Path) -> None:
    """Both files tell the same run; remarks are at the foot."""
    results = results_of(p={"get32.rps": [1300.0]}, direct={"get32.rps": [9000.0]})
    results.remark("envoy", "left out: not installed")
    run = report.Run(
        date="2025-11-24",
        command="python -m tests.bench",
        rounds=1,
        machine={"machine": "two cores"},
        contenders=[("p", "p 1.0", "all on")],
        results=results,
        verdicts=verdicts(results, "p"),
        ours="p",
    )
    report.write(run, tmp_path / "out" / "run.md")
    text = (tmp_path / "out" / "run.md").read_text()
    assert "| direct | 9,000 | 0.14 × |" in text
    assert text.endswith("- envoy: left out: not installed\n")
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["results"]["samples"]["p"] == {"get32.rps": [1300.0]}
