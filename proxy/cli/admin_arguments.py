"""What all commands of the admin API share: their options, the call, and the output."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from proxy.cli.admin_client import DEFAULT_ADMIN, AdminError, Client
from proxy.cli.admin_output import show
from proxy.config.units import parse_duration

Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Ask = Callable[[Client, argparse.Namespace], Any]


def positive(text: str) -> int:
    """Parse an argument: a whole number from 1."""
    if not text.isdecimal() or not 0 < int(text[:12]) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def duration(text: str) -> str:
    """Parse an argument: a duration, as the admin API accepts it."""
    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def group(
    commands: Actions,
    name: str,
    does: str,
    epilog: str,
) -> Actions:
    """A command with actions below it: `jobs list`."""
    parser = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}, through the admin API of a running proxy.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(metavar="ACTION", dest="action", required=True)


def action(actions: Actions, name: str, ask: Ask, does: str) -> argparse.ArgumentParser:
    """One action of a group."""
    parser = actions.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    connection_options(parser, ask)
    return parser


def connection_options(
    parser: argparse.ArgumentParser, ask: Ask, output: Callable[[Any], None] = show
) -> None:
    """Add the options of the connection, and make `ask` the command's function. `output` prints
    its answer for people."""
    parser.set_defaults(command=_ask, ask=ask, output=output)
    parser.add_argument(
        "--admin",
        default=DEFAULT_ADMIN,
        metavar="URL",
        help="address of the admin API (%(default)s)",
    )
    parser.add_argument("--token", help="bearer token; better from ADMIN_TOKEN, which ps hides")
    parser.add_argument("--json", action="store_true", help="print the response as JSON")


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
        options.output(answer)
    return 0
