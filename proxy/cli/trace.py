"""`trace ID`: the story of a job or a correlation ID, as a person reads it; `trace`: the latest
trouble."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from proxy.cli.admin_arguments import positive
from proxy.cli.admin_client import DEFAULT_ADMIN, AdminError, Client, segment
from proxy.config.problems import printable

_COLOURS = {"ok": "", "warning": "yellow", "error": "bold red"}
_MARKS = {"ok": " ", "warning": "!", "error": "E"}

_HINTS = """\
- is the ID whole? A job ID is in the answer to its creation, a correlation ID in X-Correlation-ID
- the latest trouble, with its IDs:  reliability-proxy trace
- the log has every exchange:        jq -c 'select(.correlation_id == "ID")' proxy.log
- what the mirror knows of jobs:     reliability-proxy jobs list --limit 20"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    examples: Callable[..., str],
) -> None:
    """Adds `trace` to the command line."""
    does = "what happened, by job ID or correlation ID"
    parser = commands.add_parser(
        "trace",
        help=does,
        description=f"{does[0].upper()}{does[1:]}: the whole story in order, the suspected cause on"
        " top. Without an ID: the latest warnings and errors. Through the admin API of a running"
        " proxy. Exit code 1 when nothing is known of the ID.",
        epilog=examples(
            "trace mv_a1b2c3d4e5",
            "trace 2f1c1a1e-1111-4222-8333-123456789abc --json",
            "trace --severity error --limit 20",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_trace)
    parser.add_argument("id", metavar="ID", nargs="?", help="of a job, or X-Correlation-ID")
    parser.add_argument(
        "--severity",
        choices=("ok", "warning", "error"),
        help="events that are at least so bad (without an ID: warning)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=20,
        metavar="N",
        help="without an ID: so many (%(default)s)",
    )
    parser.add_argument(
        "--admin", default=DEFAULT_ADMIN, metavar="URL", help="where it listens (%(default)s)"
    )
    parser.add_argument("--token", help="bearer token; better from ADMIN_TOKEN, which ps hides")
    parser.add_argument("--json", action="store_true", help="the answer as it came")


def _trace(options: argparse.Namespace) -> int:
    token = options.token if options.token is not None else os.environ.get("ADMIN_TOKEN", "")
    try:
        client = Client(options.admin, token)
        if options.id is None:
            query = urlencode({"severity": options.severity or "warning", "limit": options.limit})
            answer = client.call("GET", f"/api/trace?{query}")
        else:
            answer = _story(client, options.id)
            if answer is None:
                return 1
            if options.severity is not None:
                _keep_severe(answer, options.severity)
    except AdminError as error:
        print(f"reliability-proxy: {error}", file=sys.stderr)
        return 2 if str(error).startswith("--admin:") else 1
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    elif options.id is None:
        _show(answer.get("events") or [], "nothing of that kind is recorded", dated=True)
    else:
        _tell(answer)
    return 0


def _story(client: Client, wanted: str) -> Any:
    """The story; None, with hints printed, where nothing is known."""
    status, body = client.send("GET", f"/api/trace/{segment(wanted)}")
    if status != 404:
        return client.call("GET", f"/api/trace/{segment(wanted)}")
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = {}
    detail = problem.get("detail") if isinstance(problem, dict) else None
    said = str(detail or "this proxy has no trace: is it of an older release?")
    print(f"reliability-proxy: {printable(wanted)}: {printable(said)}", file=sys.stderr)
    print(_HINTS.replace('ID")', f'{printable(wanted)}")'), file=sys.stderr)
    return None


def _keep_severe(story: dict[str, Any], least: str) -> None:
    """Leave out what is not so bad, and have the suspect point at its event by its new number."""
    events = story.get("events") or []
    ranks = list(_MARKS)
    kept = [n for n, e in enumerate(events) if _rank(ranks, e) >= ranks.index(least)]
    story["events"] = [events[number] for number in kept]
    cause = story.get("suspected_cause")
    if cause and cause.get("event") is not None:
        cause["event"] = kept.index(cause["event"]) if cause["event"] in kept else None


def _rank(ranks: list[str], event: Mapping[str, Any]) -> int:
    severity = event.get("severity")
    return ranks.index(severity) if severity in ranks else len(ranks)


# --- output -------------------------------------------------------------------------------------


def _tell(story: Mapping[str, Any]) -> None:
    """The head, the suspect, the events."""
    events = story.get("events") or []
    cause = story.get("suspected_cause")
    lines = [f"{story.get('kind')} {story.get('id')}"]
    others = [one for one in story.get("job_ids") or () if one != story.get("id")]
    if others:
        lines.append(f"jobs: {', '.join(map(str, others))}")
    others = [one for one in story.get("correlation_ids") or () if one != story.get("id")]
    if others:
        shown = ", ".join(map(str, others[:5]))
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        lines.append(f"correlation IDs: {shown}{more}")
    if story.get("note"):
        lines.append(f"note: {story['note']}")
    found = f"suspected cause: {cause['summary']}" if cause else "no cause suspected: nothing wrong"
    suspect = cause.get("event") if cause else None
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
    _show(events, "no events", suspect=suspect)


def _show(
    events: Sequence[Mapping[str, Any]],
    nothing: str,
    *,
    suspect: int | None = None,
    dated: bool = False,
) -> None:
    """A line for each event: time, mark, source, duration, what happened, IDs where several."""
    if not events:
        print(nothing)
        return
    days = {str(event.get("at"))[:10] for event in events}
    start = 0 if dated or len(days) > 1 else 11
    if start:
        print(f"on {next(iter(days))} (UTC)")
    rows = []
    for number, event, times, until in _joined(events, suspect):
        mark = ">" if number == suspect else _MARKS.get(str(event.get("severity")), "?")
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
    events: Sequence[Mapping[str, Any]], suspect: int | None
) -> Iterator[tuple[int, Mapping[str, Any], int, str]]:
    """Number, event, how often and until when: what repeats itself without trouble, as polls do, is
    one line."""
    number = 0
    while number < len(events):
        event, last = events[number], number
        while (
            last + 1 < len(events)
            and last + 1 != suspect
            and number != suspect
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
