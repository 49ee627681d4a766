"""`trace ID`: the timeline of a job or a correlation ID; `trace`: the latest warnings and
errors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from proxy.cli.admin_arguments import connection_options, positive
from proxy.cli.admin_client import AdminError, Client, segment
from proxy.core.text import printable

_COLOURS = {"ok": "", "warning": "yellow", "error": "bold red"}
_MARKS = {"ok": " ", "warning": "!", "error": "E"}

_HINTS = """\
- is the ID whole? A job ID is in the answer to its creation, a correlation ID in X-Correlation-ID
- the latest problems, with IDs:     reliability-proxy trace
- the log has every exchange:        jq -c 'select(.correlation_id == "ID")' proxy.log
- what the mirror knows of jobs:     reliability-proxy jobs list --limit 20"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    examples: Callable[..., str],
) -> None:
    """Add `trace` to the command line."""
    does = "what happened, by job ID or correlation ID"
    parser = commands.add_parser(
        "trace",
        help=does,
        description=f"{does[0].upper()}{does[1:]}: its timeline, with the suspected cause on top."
        " Without an ID: the latest warnings and errors. Through the admin API of a running"
        " proxy. Exit code 1 if nothing is known of the ID.",
        epilog=examples(
            "trace mv_a1b2c3d4e5",
            "trace 2f1c1a1e-1111-4222-8333-123456789abc --json",
            "trace --severity error --limit 20",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("id", metavar="ID", nargs="?", help="of a job, or X-Correlation-ID")
    parser.add_argument(
        "--severity",
        choices=("ok", "warning", "error"),
        help="only events of at least this severity (without an ID: warning)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=20,
        metavar="N",
        help="without an ID: at most this many (%(default)s)",
    )
    connection_options(parser, _trace, _show_answer)


def _trace(client: Client, options: argparse.Namespace) -> Any:
    if options.id is None:
        query = urlencode({"severity": options.severity or "warning", "limit": options.limit})
        return client.call("GET", f"/api/trace?{query}")
    answer = _fetch_timeline(client, options.id)
    if options.severity is not None:
        _keep_severe(answer, options.severity)
    return answer


def _show_answer(answer: Mapping[str, Any]) -> None:
    if "id" in answer:
        _show_timeline(answer)
    else:
        _show(answer.get("events") or [], "nothing of that kind is recorded", dated=True)


def _fetch_timeline(client: Client, wanted: str) -> Any:
    """The timeline. Raises `AdminError`, with hints if nothing is known."""
    status, body = client.send("GET", f"/api/trace/{segment(wanted)}")
    if status != 404:
        return client.call("GET", f"/api/trace/{segment(wanted)}")
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = {}
    detail = problem.get("detail") if isinstance(problem, dict) else None
    message = str(detail or "this proxy has no trace: is it of an older release?")
    hints = _HINTS.replace('ID")', f'{printable(wanted)}")')
    raise AdminError(f"{printable(wanted)}: {printable(message)}\n{hints}")


def _keep_severe(timeline: dict[str, Any], least: str) -> None:
    """Leave out less severe events, and renumber the event of the suspected cause."""
    events = timeline.get("events") or []
    ranks = list(_MARKS)
    kept = [n for n, e in enumerate(events) if _rank(ranks, e) >= ranks.index(least)]
    timeline["events"] = [events[number] for number in kept]
    cause = timeline.get("suspected_cause")
    if cause and cause.get("event") is not None:
        cause["event"] = kept.index(cause["event"]) if cause["event"] in kept else None


def _rank(ranks: list[str], event: Mapping[str, Any]) -> int:
    severity = event.get("severity")
    return ranks.index(severity) if severity in ranks else len(ranks)


# --- output -------------------------------------------------------------------------------------


def _show_timeline(timeline: Mapping[str, Any]) -> None:
    """Print the head, the suspected cause, and the events."""
    events = timeline.get("events") or []
    cause = timeline.get("suspected_cause")
    lines = [f"{timeline.get('kind')} {timeline.get('id')}"]
    others = [one for one in timeline.get("job_ids") or () if one != timeline.get("id")]
    if others:
        lines.append(f"jobs: {', '.join(map(str, others))}")
    others = [one for one in timeline.get("correlation_ids") or () if one != timeline.get("id")]
    if others:
        shown = ", ".join(map(str, others[:5]))
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        lines.append(f"correlation IDs: {shown}{more}")
    if timeline.get("note"):
        lines.append(f"note: {timeline['note']}")
    found = f"suspected cause: {cause['summary']}" if cause else "no cause suspected: nothing wrong"
    cause_at = cause.get("event") if cause else None
    if not sys.stdout.isatty():
        print("\n".join(map(printable, [*lines, found])))
    else:
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        console = Console(highlight=False)
        for line in lines:
            console.print(Text(printable(line)))
        style = "bold red" if cause else "green"
        console.print(Panel(Text(printable(found)), border_style=style, expand=False))
    _show(events, "no events", cause_at=cause_at)


def _show(
    events: Sequence[Mapping[str, Any]],
    nothing: str,
    *,
    cause_at: int | None = None,
    dated: bool = False,
) -> None:
    """Print a line per event: time, mark, source, duration, summary, and the ID if there are
    several."""
    if not events:
        print(nothing)
        return
    days = {str(event.get("at"))[:10] for event in events}
    start = 0 if dated or len(days) > 1 else 11
    if start:
        print(f"on {next(iter(days))} (UTC)")
    rows = []
    for number, event, times, until in _joined(events, cause_at):
        mark = ">" if number == cause_at else _MARKS.get(str(event.get("severity")), "?")
        inferred = " (inferred)" if (event.get("facts") or {}).get("inferred") else ""
        again = f" ({times} times until {until[start:].rstrip('Z')})" if times > 1 else ""
        about = event.get("job_id") or event.get("correlation_id") or "" if dated else ""
        rows.append(
            (
                str(event.get("at"))[start:].rstrip("Z"),
                mark,
                str(event.get("source")),
                _duration(event.get("duration_ms")),
                f"{event.get('summary')}{again}{inferred}",
                str(about),
                str(event.get("severity")),
            )
        )
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(map(printable, row[:6])).rstrip("\t"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("time", "", "source", "took", "what"):
        table.add_column(
            no_wrap=column != "what",
            overflow="fold",
            justify="right" if column == "took" else "left",
        )
    for row in rows:
        cells = [Text(printable(cell), style=_COLOURS.get(row[6], "")) for cell in row[:5]]
        if row[5]:
            cells[4].append(f"  {printable(row[5])}", style="cyan")
        table.add_row(*cells)
    Console(highlight=False).print(table)


def _joined(
    events: Sequence[Mapping[str, Any]], cause_at: int | None
) -> Iterator[tuple[int, Mapping[str, Any], int, str]]:
    """Number, event, count and last time. Equal successful events in a row, such as polls, are
    joined into one."""
    number = 0
    while number < len(events):
        event, last = events[number], number
        while (
            last + 1 < len(events)
            and last + 1 != cause_at
            and number != cause_at
            and event.get("severity") == "ok"
            and events[last + 1].get("severity") == "ok"
            and events[last + 1].get("source") == "exchange"
            and events[last + 1].get("summary") == event.get("summary")
        ):
            last += 1
        yield number, event, last - number + 1, str(events[last].get("at"))
        number = last + 1


def _duration(milliseconds: object) -> str:
    if not isinstance(milliseconds, int | float):
        return ""
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms" if milliseconds >= 10 else f"{milliseconds:.1f}ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f}s" if seconds < 120 else f"{seconds / 60:.1f}min"
