"""`breakers`: list circuit breakers, and open, close or reset them for the whole fleet."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from proxy.cli.admin_arguments import Actions, action, duration, group
from proxy.cli.admin_client import Client, segment


def add_commands(commands: Actions, examples: Callable[..., str]) -> None:
    """Add `breakers` to the command line."""
    breakers = group(
        commands,
        "breakers",
        "circuit breakers, for the whole fleet",
        examples(
            "breakers list --json",
            "breakers open youtube-search --reason 'quota used up' --for 10m",
            "breakers reset youtube-search",
        ),
    )
    action(breakers, "list", _list, "every breaker and its state")
    for name, does in (
        ("open", "refuse calls to an upstream"),
        ("close", "allow all calls to an upstream"),
        ("reset", "clear the counts and start closed"),
    ):
        change = action(breakers, name, _change, does)
        change.add_argument("name", metavar="NAME", help="the upstream's name")
        change.add_argument("--reason", default="by hand", help="for the log (%(default)s)")
        if name != "reset":
            change.add_argument(
                "--for",
                dest="for_",
                type=duration,
                metavar="DURATION",
                help="such as 10m; after that it decides automatically again",
            )


def _list(client: Client, options: argparse.Namespace) -> Any:
    answer = client.call("GET", "/api/breakers")
    if not options.json and isinstance(answer, dict):
        for breaker in answer.get("breakers") or ():
            _without_old_failures(breaker)
    return answer


def _without_old_failures(breaker: dict[str, Any]) -> None:
    """Hide failures unless the breaker is closed: those that opened it are its reason."""
    if breaker.get("state") != "closed":
        breaker["failures"] = None


def _change(client: Client, options: argparse.Namespace) -> Any:
    document = {"reason": options.reason}
    if getattr(options, "for_", None):
        document["for"] = options.for_
    name = segment(options.name)
    answer = client.call("POST", f"/api/breakers/{name}/{options.action}", document)
    if not options.json and isinstance(answer, dict):
        _without_old_failures(answer)
    return answer
