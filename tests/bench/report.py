"""The run as Markdown and as JSON. Pure, but for the two files that it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.measures import GROUPS, Group, Measure, Results
from tests.bench.stats import Summary
from tests.bench.targets import Verdict

BEGIN, END = "<!-- results -->", "<!-- /results -->"


@dataclass(frozen=True, slots=True)
class Run:
    """All that the report has of one run. `machine` is label and value; `contenders` name, version
    and what is switched on."""

    date: str
    command: str
    rounds: int
    machine: dict[str, str]
    contenders: Sequence[tuple[str, str, str]]
    results: Results
    verdicts: Sequence[Verdict]
    ours: str


def number(value: float, decimals: int) -> str:
    """With thousands separators; `-0` is 0."""
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def cell(summary: Summary | None, decimals: int) -> str:
    """Median and range, the median alone when there is no range, a dash without samples."""
    if summary is None:
        return "–"
    median, low, high = (
        number(value, decimals) for value in (summary.median, summary.low, summary.high)
    )
    return median if low == high else f"{median} ({low}–{high})"


def table(group: Group, results: Results, names: Sequence[str], ours: str) -> str:
    """One Markdown table; empty when nothing of the group was measured. Measures that nobody has
    and contenders that have none of them are left out."""
    measures = [m for m in group.measures if any(results.summary(n, m.key) for n in names)]
    rows = [n for n in names if any(results.summary(n, m.key) for m in measures)]
    if not rows:
        return ""
    with_ratio = group.ratios and ours in rows and len(rows) > 1
    head, rule = ["", *_titles(measures, with_ratio)], ["---"]
    rule += ["---:"] * (len(head) - 1)
    lines = [_row(head), _row(rule)]
    for name in rows:
        cells = [f"**{name}**" if name == ours else name]
        for measure in measures:
            cells.append(cell(results.summary(name, measure.key), measure.decimals))
            if with_ratio:
                ratio = None if name == ours else results.ratio(ours, name, measure.key)
                cells.append("" if ratio is None else f"{ratio:.2f} ×")
        lines.append(_row(cells))
    return f"### {group.title}\n\n{group.reading}\n\n" + "\n".join(lines)


def markdown(run: Run) -> str:
    """The whole report, without a title of the first level."""
    names = [name for name, _, _ in run.contenders]
    names += [name for name in run.results.samples if name not in names]
    parts = [
        f"Measured on {run.date} with `{run.command}`: {run.rounds} "
        f"round{'s' * (run.rounds != 1)}, median (lowest–highest); × is {run.ours} / each.",
        "\n".join(f"- {label}: {value}" for label, value in run.machine.items()),
        "\n".join(
            [_row(["contender", "version", "switched on"]), _row(["---"] * 3)]
            + [_row(list(contender)) for contender in run.contenders]
        ),
        *(table(group, run.results, names, run.ours) for group in GROUPS),
        "### Targets",
        "**Other programs disturbed this run (see the remarks): its verdicts do not count.**"
        if run.results.disturbed()
        else "",
        "\n".join(f"- {verdict}" for verdict in run.verdicts),
    ]
    remarks = [f"- {name}: {text}" for name, texts in run.results.notes.items() for text in texts]
    if remarks:
        parts.append("### Remarks\n\n" + "\n".join(remarks))
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(run: Run) -> str:
    """Every sample, for other tools."""
    return json.dumps(asdict(run), indent=1, ensure_ascii=False) + "\n"


def write(run: Run, path: Path) -> None:
    """The Markdown in `path`, the JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# Benchmark\n\n{markdown(run)}")
    path.with_suffix(".json").write_text(as_json(run))


def replace_results(document: str, report: str) -> str:
    """The document with what stands between its two markers replaced. Raises ValueError when it
    does not hold each of them once, in order."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise ValueError(f"the document needs {BEGIN} and {END}, once each and in this order")
    return f"{head}{BEGIN}\n\n{report.strip()}\n\n{END}{tail}"


def _titles(measures: Sequence[Measure], with_ratio: bool) -> list[str]:
    titles = []
    for measure in measures:
        titles.append(measure.title)
        if with_ratio:
            titles.append("×")
    return titles


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
