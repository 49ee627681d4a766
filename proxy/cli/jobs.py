"""`jobs`: list, show, synchronize, restore and requeue the jobs that the mirrors know."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from proxy.cli.admin_arguments import Actions, action, group, positive
from proxy.cli.admin_client import AdminError, Client, segment
from proxy.core.text import printable


def add_commands(commands: Actions, examples: Callable[..., str]) -> None:
    """Add `jobs` to the command line."""
    jobs = group(
        commands,
        "jobs",
        "the jobs that the mirror knows",
        examples(
            "jobs list --status failed --limit 20",
            "jobs show mv_a1b2c3d4e5",
            "jobs requeue mv_a1b2c3d4e5",
        ),
    )
    listing = action(jobs, "list", _list, "list jobs, newest first")
    listing.add_argument("--mirror", metavar="NAME", help="of this mirror only")
    listing.add_argument("--status", help="in this status only")
    listing.add_argument("--limit", type=positive, metavar="N", help="at most this many")
    listing.add_argument("--stranded", action="store_true", help="only those that no worker has")
    show = action(jobs, "show", _show, "one job and all its known versions")
    show.add_argument("id", metavar="ID")
    show.add_argument("--mirror", metavar="NAME", help="required if there are several")
    requeue = action(jobs, "requeue", _requeue, "push a new message for a job that no worker has")
    requeue.add_argument("id", metavar="ID")
    requeue.add_argument("--mirror", metavar="NAME", help="required if there are several")
    requeue.add_argument("--reason", default="by hand", help="for the log (%(default)s)")
    requeue.add_argument(
        "--force", action="store_true", help="even without proof that no worker has it"
    )
    for name, does in (
        ("sync", "copy the jobs in Redis into SQLite now"),
        ("restore", "restore the jobs that Redis has lost, now"),
    ):
        change = action(jobs, name, _change, does)
        change.add_argument("--mirror", metavar="NAME", help="of this mirror only")


def _list(client: Client, options: argparse.Namespace) -> Any:
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
    """Print what is wrong with a mirror next to its list of jobs."""
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
            text = f"mirror {mirror.get('mirror')}: {'; '.join(wrong)}"
            print(f"reliability-proxy: {printable(text)}", file=sys.stderr)


def _show(client: Client, options: argparse.Namespace) -> Any:
    mirror = options.mirror or _only_mirror(client)
    return client.call("GET", f"/api/jobs/{segment(mirror)}/{segment(options.id)}")


def _only_mirror(client: Client) -> str:
    config = client.call("GET", "/api/config")
    mirrors = list(config.get("mirrors") or ()) if isinstance(config, dict) else []
    if len(mirrors) != 1:
        names = ", ".join(mirrors) or "none"
        raise AdminError(f"give --mirror NAME; this proxy's mirrors: {printable(names)}")
    return str(mirrors[0])


def _change(client: Client, options: argparse.Namespace) -> Any:
    document = {"mirror": options.mirror} if options.mirror else {}
    return client.call("POST", f"/api/jobs/{options.action}", document)


def _requeue(client: Client, options: argparse.Namespace) -> Any:
    mirror = options.mirror or _only_mirror(client)
    path = f"/api/jobs/{segment(mirror)}/{segment(options.id)}/requeue"
    return client.call("POST", path, {"reason": options.reason, "force": options.force})
