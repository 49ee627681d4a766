"""The command line: parses arguments, runs a command, and reports errors in one clear line.

Exit codes: 0 fine, 1 failed at run time, 2 bad usage or config, 130 interrupted. Each command
imports what it needs when it runs, so that `--help` and `check` answer at once.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from proxy import __version__
from proxy.cli import breakers, jobs, trace, upgrade
from proxy.cli.admin_client import AdminError, Client, one_line
from proxy.config.problems import ConfigError
from proxy.core.text import host_port

PROGRAM = "reliability-proxy"

FINE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors that a user can cause never raise."""
    for stream in (sys.stdout, sys.stderr):
        # A file name or job id that the terminal cannot encode must not end in a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        command: Command = options.command
        code = command(options)
        if sys.stdout is not None:  # None if descriptor 1 was closed from the start
            sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone. Python flushes stdout once more at exit: let that succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except OSError as error:
        return fail(error.strerror or str(error))
    return code


def fail(message: str, code: int = FAILED) -> int:
    """Print one line to stderr; returns the exit code."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code


# --- commands -----------------------------------------------------------------------------------


def _config_file(options: argparse.Namespace) -> Path:
    if not options.config:
        print(f"{PROGRAM}: give --config FILE or set PROXY_CONFIG", file=sys.stderr)
        raise SystemExit(USAGE)
    return Path(options.config)


def _run(options: argparse.Namespace) -> int:
    file = _config_file(options)
    gc.disable()  # imports make no garbage, and looking for it would take a tenth of the start
    from proxy.app import process

    gc.enable()
    return process.run(file)


def _check(options: argparse.Namespace) -> int:
    file = _config_file(options)
    from proxy.config.load import load

    try:
        loaded = load(file)
    except ConfigError as error:
        if not options.json:
            raise
        problems = [
            {
                "file": str(problem.file),
                "line": problem.line,
                "key": problem.key,
                "expected": problem.expected,
                "found": problem.found,
            }
            for problem in error.problems
        ]
        print(json.dumps({"ok": False, "problems": problems, "warnings": []}, indent=2))
        return USAGE
    if options.json:
        warnings = [
            {
                "file": str(warning.file),
                "line": warning.line,
                "key": warning.key,
                "text": warning.text,
            }
            for warning in loaded.warnings
        ]
        print(json.dumps({"ok": True, "problems": [], "warnings": warnings}, indent=2))
        return FINE
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    config = loaded.config
    routes = sum(len(listener.routes) for listener in config.listeners.values())
    counts = [
        _count(len(config.listeners), "listener"),
        _count(routes, "route"),
        _count(len(config.upstreams), "upstream"),
        _count(len(config.mirrors), "mirror"),
        _count(len(loaded.warnings), "warning"),
    ]
    print(f"{file}: ok ({', '.join(filter(None, counts))})")
    return FINE


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""


def _schema(options: argparse.Namespace) -> int:
    from proxy.config.json_schema import json_schema_text

    sys.stdout.write(json_schema_text())
    return FINE


def _demo(options: argparse.Namespace) -> int:
    from proxy import demo

    return demo.run(once=options.once)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(_parser(), options.shell))
    return FINE


def _healthcheck(options: argparse.Namespace) -> int:
    from proxy.config.load import load_config

    try:
        config = load_config(_config_file(options))
    except ConfigError as error:
        # Container runtimes know only 0 and 1.
        return fail(f"config: {len(error.problems)} problem(s), first: {error.problems[0]}")
    bind = config.metrics.bind if config.metrics else config.admin.bind
    if not bind.port:
        return fail("the health port is 0 in the config, so only the running proxy knows it")
    host = bind.host or "127.0.0.1"
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    token = config.admin.token.get_secret_value() if config.admin.token else ""
    url = f"http://{host_port(host, bind.port)}"
    client = Client(url, "" if config.metrics else token, timeout=options.timeout)
    path = "/readyz" if options.ready else "/livez"
    try:
        status, body = client.send("GET", path)
    except AdminError as error:
        return fail(str(error))
    if status != 200:
        return fail(f"{url}{path} answers {status}: {one_line(body)}")
    print(f"{url}{path}: ok")
    return FINE


# --- arguments ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A sidecar reverse proxy that keeps a service and its jobs alive.",
        epilog=_examples(
            "demo",
            "check --config config/make-video.yaml",
            "run --config config/make-video.yaml",
            "jobs list --status failed",
            "trace mv_a1b2c3d4e5",
            "upgrade",
            "breakers open youtube-search --reason 'quota used up' --for 10m",
        )
        + "\n\nexit codes: 0 fine, 1 failed at run time, 2 bad usage or config",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _command(
        commands,
        "run",
        _run,
        "run the proxy until SIGTERM or SIGINT",
        "run --config config/make-video.yaml",
        "PROXY_CONFIG=config/make-video.yaml {} run",
        more="SIGTERM drains: requests in flight finish, a second signal ends at once. SIGHUP "
        "reloads the config, SIGUSR2 hands over to a new process (see upgrade).",
    )
    _config_option(run)

    check = _command(
        commands,
        "check",
        _check,
        "validate a config file and list every problem",
        "check --config config/make-video.yaml",
        "check --config my.yaml --json",
    )
    _config_option(check)
    check.add_argument("--json", action="store_true", help="problems and warnings as JSON")

    _command(
        commands,
        "schema",
        _schema,
        "print the JSON Schema of the config",
        "schema > config/schema.json",
    )

    demo = _command(
        commands,
        "demo",
        _demo,
        "stand-in services, the proxy in front of them, and a guided tour",
        "demo",
        "demo --once",
    )
    demo.add_argument("--once", action="store_true", help="exit after the tour; 0 if all went well")

    health = _command(
        commands,
        "healthcheck",
        _healthcheck,
        "ask the running proxy whether it is alive; for containers",
        "healthcheck --config config/make-video.yaml",
        "healthcheck --ready",
    )
    _config_option(health)
    health.add_argument("--ready", action="store_true", help="ask /readyz instead of /livez")
    health.add_argument(
        "--timeout",
        type=_seconds,
        default=3.0,
        metavar="SECONDS",
        help="time limit (%(default)s)",
    )

    completion = _command(
        commands,
        "completion",
        _completion,
        "print the completion script of a shell",
        "completion bash > ~/.local/share/bash-completion/completions/reliability-proxy",
        "completion zsh > ~/.zfunc/_reliability-proxy",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))

    jobs.add_commands(commands, _examples)
    upgrade.add_command(commands, _examples)
    breakers.add_commands(commands, _examples)
    trace.add_command(commands, _examples)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError("more than 0 and at most 3600 seconds")
    return seconds


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Command,
    does: str,
    *examples: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}. {more}".strip(),
        epilog=_examples(*examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("PROXY_CONFIG"),
        help="YAML or JSON; also from PROXY_CONFIG",
    )


def _examples(*commands: str) -> str:
    lines = [
        command.format(PROGRAM) if "{}" in command else f"{PROGRAM} {command}"
        for command in commands
    ]
    return "\n  ".join(["examples:", *lines])
