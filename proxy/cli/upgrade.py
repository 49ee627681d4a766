"""`upgrade`: a new version of the program takes over from the running one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from proxy.cli.admin_arguments import Actions, connection_options
from proxy.cli.admin_client import Client

#: Seconds that an upgrade may take: the time limits of both processes, and a reserve.
_UPGRADE = 120.0


def add_command(commands: Actions, examples: Callable[..., str]) -> None:
    """Add `upgrade` to the command line."""
    does = "hand the listeners to a new process of the program on disk, then drain"
    parser = commands.add_parser(
        "upgrade",
        help=does,
        description=f"{does[0].upper()}{does[1:]}. No connection is refused or reset: new"
        " ones wait in the kernel while stores change hands. The new process reads the config file"
        " as it is now. If it fails to serve, the old one continues, and the exit code is 1."
        " SIGUSR2 to the running proxy does the same.",
        epilog=examples("upgrade", "upgrade --admin http://127.0.0.1:9901 --json"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    connection_options(parser, _upgrade)
    parser.set_defaults(patience=_UPGRADE)


def _upgrade(client: Client, options: argparse.Namespace) -> Any:
    return client.call("POST", "/api/upgrade", {})
