"""`jobs` and `breakers`: the commands that ask a running proxy through its admin API."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from proxy.config.problems import printable
from proxy.config.units import parse_duration

DEFAULT_ADMIN = "http://127.0.0.1:9901"
_LONGEST_ANSWER = 64 * 1024 * 1024

# What a table shows of a row, where the row has it; the rest is in `--json`.
_COLUMNS = (
    "name",
    "service",
    "state",
    "failures",
    "until",
    "reason",
    "job_id",
    "id",
    "mirror",
    "status",
    "progress",
    "last_sync",
    "keys",
    "copied",
    "missing",
    "deleted",
    "restored",
    "kept",
    "seconds",
    "seen_at",
    "created_at",
    "updated_at",
    "expires_at",
    "deleted_at",
    "error",
)


_IDS = frozenset({"job_id", "id", "name"})

# What gives way to the others on a narrow terminal, the first first; `--json` has all.
_EXPENDABLE = (
    "expires_at",
    "updated_at",
    "progress",
    "created_at",
    "mirror",
    "until",
    "failures",
    "last_sync",
    "seconds",
    "reason",
    "error",
)
_TEXT_WIDTH = 16  # columns that the words of a reason or an error need at least


class AdminError(Exception):
    """The admin API could not be asked, or refused: one line for the user."""


class Client:
    """HTTP to the admin API, one connection per call.

    `timeout` is in seconds. Proxies of the environment are not used: the API is next door.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise AdminError(f"--admin: expected a URL such as {DEFAULT_ADMIN}, found {url!r}")
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._base = parts.path.rstrip("/")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connect: Callable[[], http.client.HTTPConnection] = lambda: kind(
            str(parts.hostname), port, timeout=timeout
        )
        if not token.isascii() or not token.isprintable():
            raise AdminError("the token has characters that no header may hold")
        self._fields = {"Accept": "application/json"}
        if token:
            self._fields["Authorization"] = f"Bearer {token}"

    def send(self, method: str, path: str, document: object = None) -> tuple[int, bytes]:
        """Status and body of one exchange. Raises `AdminError` where there is no answer."""
        body = None if document is None else json.dumps(document).encode()
        fields = self._fields | ({"Content-Type": "application/json"} if body else {})
        connection = self._connect()
        try:
            connection.request(method, self._base + path, body, fields)
            response = connection.getresponse()
            return response.status, response.read(_LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminError(
                f"no admin API at {self._shown} ({printable(reason).lower()}); "
                "is the proxy running? another address: --admin URL"
            ) from None
        finally:
            connection.close()

    def call(self, method: str, path: str, document: object = None) -> Any:
        """The JSON answer of a successful call. Raises `AdminError` with the API's own words."""
        status, body = self.send(method, path, document)
        try:
            answer = json.loads(body) if body else None
        except (ValueError, RecursionError):
            answer = body
        if 200 <= status < 300 and not isinstance(answer, bytes):
            return answer
        detail = answer.get("detail") if isinstance(answer, dict) else None
        if status == 401:
            raise AdminError(
                "the admin API does not know this token: see admin.token in the proxy's config"
                if "Authorization" in self._fields
                else "the admin API wants a token: give --token or set ADMIN_TOKEN"
            )
        if detail:
            raise AdminError(printable(str(detail)))
        if status == 404:
            raise AdminError(f"{self._shown}{path} is not there (404): not known to this proxy")
        raise AdminError(f"{self._shown}{path} answers {status}: {one_line(body)}")


def segment(text: str) -> str:
    """`text` as one segment of a URL's path; two dots would be the way up."""
    return quote(text, safe="") if text not in (".", "..") else text.replace(".", "%2E")


def one_line(body: bytes) -> str:
    """The beginning of an answer, safe for a terminal."""
    return printable(" ".join(body.decode(errors="replace").split())[:200]) or "nothing"


# --- commands -----------------------------------------------------------------------------------

#: Seconds that an upgrade may take: what both processes wait for, and some more.
_UPGRADE = 120.0

Ask = Callable[[Client, argparse.Namespace], Any]


def _jobs_list(client: Client, options: argparse.Namespace) -> Any:
    asked = {
        "mirror": options.mirror,
        "status": options.status,
        "limit": options.limit,
        "stranded": "true" if options.stranded else None,
    }
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    answer = client.call("GET", f"/api/jobs?{query}" if query else "/api/jobs")
    if options.json or not isinstance(answer, dict):
        return answer
    mirrors = answer.pop("mirrors", None)
    if mirrors == []:
        raise AdminError("this proxy has no mirror: add one under mirrors in its config")
    _warn(mirrors)
    return answer


def _warn(mirrors: Any) -> None:
    """What is wrong with a mirror, for whoever reads its list of jobs."""
    for mirror in mirrors if isinstance(mirrors, list) else ():
        wrong = [
            f"{part} {mirror.get(part)}: {mirror.get(why)}"
            for part, good, why in (("redis", "live", "reason"), ("sqlite", "ok", "sqlite_reason"))
            if mirror.get(part) != good
        ]
        if mirror.get("writes", "ok") != "ok":
            wrong.append(f"redis refuses writes: {mirror.get('writes')}")
        wrong += [f"redis right missing: {right}" for right in mirror.get("missing_rights") or ()]
        if wrong:
            told = f"mirror {mirror.get('mirror')}: {'; '.join(wrong)}"
            print(f"reliability-proxy: {printable(told)}", file=sys.stderr)


def _jobs_show(client: Client, options: argparse.Namespace) -> Any:
    mirror = options.mirror or _only_mirror(client)
    return client.call("GET", f"/api/jobs/{segment(mirror)}/{segment(options.id)}")


def _only_mirror(client: Client) -> str:
    config = client.call("GET", "/api/config")
    mirrors = list(config.get("mirrors") or ()) if isinstance(config, dict) else []
    if len(mirrors) != 1:
        told = ", ".join(mirrors) or "none"
        raise AdminError(f"give --mirror NAME; this proxy's mirrors: {printable(told)}")
    return str(mirrors[0])


def _jobs_change(client: Client, options: argparse.Namespace) -> Any:
    document = {"mirror": options.mirror} if options.mirror else {}
    return client.call("POST", f"/api/jobs/{options.action}", document)


def _jobs_requeue(client: Client, options: argparse.Namespace) -> Any:
    mirror = options.mirror or _only_mirror(client)
    path = f"/api/jobs/{segment(mirror)}/{segment(options.id)}/requeue"
    return client.call("POST", path, {"reason": options.reason, "force": options.force})


def _upgrade(client: Client, options: argparse.Namespace) -> Any:
    return client.call("POST", "/api/upgrade", {})


def _breakers_list(client: Client, options: argparse.Namespace) -> Any:
    answer = client.call("GET", "/api/breakers")
    if not options.json and isinstance(answer, dict):
        for breaker in answer.get("breakers") or ():
            _without_old_failures(breaker)
    return answer


def _without_old_failures(breaker: dict[str, Any]) -> None:
    """Only a closed breaker counts failures; those that opened one are its reason."""
    if breaker.get("state") != "closed":
        breaker["failures"] = None


def _breakers_change(client: Client, options: argparse.Namespace) -> Any:
    document = {"reason": options.reason}
    if getattr(options, "for_", None):
        document["for"] = options.for_
    name = segment(options.name)
    answer = client.call("POST", f"/api/breakers/{name}/{options.action}", document)
    if not options.json and isinstance(answer, dict):
        _without_old_failures(answer)
    return answer


def _ask(options: argparse.Namespace) -> int:
    try:
        token = options.token if options.token is not None else os.environ.get("ADMIN_TOKEN", "")
        patience = getattr(options, "patience", 30.0)
        answer = options.ask(Client(options.admin, token, patience), options)
    except AdminError as error:
        print(f"reliability-proxy: {error}", file=sys.stderr)
        return 2 if str(error).startswith("--admin:") else 1
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _show(answer)
    return 0


# --- output -------------------------------------------------------------------------------------


def _show(answer: Any) -> None:
    """Facts as lines, rows as tables; what nests deeper as JSON."""
    if isinstance(answer, list):
        _table("", answer)
        return
    if not isinstance(answer, dict):
        print("ok" if answer is None else _cell(answer))
        return
    for name, value in answer.items():
        if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
            print(f"{printable(name)}: {_cell(value)}")
    for name, value in answer.items():
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            _table(name, value)


def _table(title: str, rows: Sequence[Any]) -> None:
    if not rows:
        print(f"no {title or 'entries'}")
        return
    if not all(isinstance(row, dict) for row in rows):
        print("\n".join(map(_cell, rows)))
        return
    columns = [name for name in _COLUMNS if any(name in row for row in rows)]
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    if not sys.stdout.isatty():
        cells = [[_cell(row.get(name)) for name in columns] for row in rows]
        print("\n".join("\t".join(line) for line in [columns, *cells]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = [{name: _short(name, _cell(row.get(name))) for name in columns} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in columns}
    columns = fitting(widths, console.width)
    cells = [[row[name] for name in columns] for row in shown]
    table = Table(title=printable(title) or None, title_justify="left")
    for name in columns:
        # An ID that is cut cannot be copied: other columns give way to it.
        table.add_column(name, overflow="fold", no_wrap=name in _IDS)
    for line in cells:
        table.add_row(*map(Text, line))
    console.print(table)
    if len(columns) < len(widths):
        hidden = [name for name in widths if name not in columns]
        print(f"not shown in {console.width} columns: {', '.join(map(printable, hidden))}")


def _short(name: str, cell: str) -> str:
    """A date to the second: its microseconds take the room of another column."""
    return cell[:19] if name.endswith("_at") and cell[19:20] == "." else cell


def fitting(widths: Mapping[str, int], width: int) -> list[str]:
    """The columns of a table that a terminal has room for, given how wide their cells are."""
    needs = {
        name: min(need, _TEXT_WIDTH) if name in ("reason", "error") else need
        for name, need in widths.items()
    }
    for name in _EXPENDABLE:
        if sum(needs.values()) + 3 * len(needs) + 1 <= width:
            break
        if len(needs) > 1:
            needs.pop(name, None)
    return list(needs)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text)


# --- arguments ----------------------------------------------------------------------------------


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    examples: Callable[..., str],
) -> None:
    """Adds `jobs`, `breakers` and `upgrade` to the command line."""
    jobs = _group(
        commands,
        "jobs",
        "the jobs that the mirror knows",
        examples(
            "jobs list --status failed --limit 20",
            "jobs show mv_a1b2c3d4e5",
            "jobs requeue mv_a1b2c3d4e5",
        ),
    )
    listing = _action(jobs, "list", _jobs_list, "list jobs, newest first")
    listing.add_argument("--mirror", metavar="NAME", help="of this mirror only")
    listing.add_argument("--status", help="in this status only")
    listing.add_argument("--limit", type=positive, metavar="N", help="at most so many")
    listing.add_argument("--stranded", action="store_true", help="only those nobody works on")
    show = _action(jobs, "show", _jobs_show, "one job and all its known versions")
    show.add_argument("id", metavar="ID")
    show.add_argument("--mirror", metavar="NAME", help="needed where there are several")
    requeue = _action(
        jobs, "requeue", _jobs_requeue, "give a job that nobody works on a message again"
    )
    requeue.add_argument("id", metavar="ID")
    requeue.add_argument("--mirror", metavar="NAME", help="needed where there are several")
    requeue.add_argument("--reason", default="by hand", help="for the log (%(default)s)")
    requeue.add_argument(
        "--force", action="store_true", help="even if nothing proves that nobody works on it"
    )
    for name, does in (
        ("sync", "copy what Redis has into SQLite now"),
        ("restore", "put jobs that Redis has lost back, now"),
    ):
        change = _action(jobs, name, _jobs_change, does)
        change.add_argument("--mirror", metavar="NAME", help="of this mirror only")

    _add_upgrade(commands, examples)
    breakers = _group(
        commands,
        "breakers",
        "circuit breakers, for the whole fleet",
        examples(
            "breakers list --json",
            "breakers open youtube-search --reason 'quota used up' --for 10m",
            "breakers reset youtube-search",
        ),
    )
    _action(breakers, "list", _breakers_list, "every breaker and its state")
    for name, does in (
        ("open", "refuse calls to an upstream"),
        ("close", "let calls through"),
        ("reset", "forget what was counted, start closed"),
    ):
        change = _action(breakers, name, _breakers_change, does)
        change.add_argument("name", metavar="NAME", help="the upstream's name")
        change.add_argument("--reason", default="by hand", help="for the log (%(default)s)")
        if name != "reset":
            change.add_argument(
                "--for",
                dest="for_",
                type=duration,
                metavar="DURATION",
                help="such as 10m; then decide automatically again",
            )


def positive(text: str) -> int:
    """A whole number from 1 up, as an argument."""
    if not text.isdecimal() or not 0 < int(text[:12]) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def duration(text: str) -> str:
    """A duration as the admin API reads it, as an argument."""
    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _group(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    does: str,
    epilog: str,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    parser = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}, through the admin API of a running proxy.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(metavar="ACTION", dest="action", required=True)


def _add_upgrade(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    examples: Callable[..., str],
) -> None:
    does = "hand the listeners to a new process of the program on disk, then drain"
    parser = commands.add_parser(
        "upgrade",
        help=does,
        description=f"{does[0].upper()}{does[1:]}. No connection is refused or reset: newcomers"
        " wait in the kernel while stores change hands. The new process reads the config file as"
        " it is now. If it does not get to serve, the old one goes on, and the exit code is 1."
        " SIGUSR2 to the running proxy does the same.",
        epilog=examples("upgrade", "upgrade --admin http://127.0.0.1:9901 --json"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _connection_options(parser, _upgrade)
    parser.set_defaults(patience=_UPGRADE)


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, ask: Ask, does: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    _connection_options(parser, ask)
    return parser


def _connection_options(parser: argparse.ArgumentParser, ask: Ask) -> None:
    parser.set_defaults(command=_ask, ask=ask)
    parser.add_argument(
        "--admin", default=DEFAULT_ADMIN, metavar="URL", help="where it listens (%(default)s)"
    )
    parser.add_argument("--token", help="bearer token; better from ADMIN_TOKEN, which ps hides")
    parser.add_argument("--json", action="store_true", help="the answer as it came")
