"""Loading a config: what is understood, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import removed, shape
from proxy.config.load import load, load_config
from proxy.config.problems import ConfigError
from proxy.config.redact import redacted
from proxy.config.schema import Config

MINIMAL = """\
listeners:
  in:
    bind: 127.0.0.1:8000
    routes:
      - {name: all, path: "/{rest:*}", upstream: app}
upstreams:
  app:
    targets: [http://127.0.0.1:8005]
"""


def read(tmp_path: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
    """Load `text` as a file."""
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(file, environ or {})


def problems(
    tmp_path: Path, text: str | bytes, environ: Mapping[str, str] | None = None
) -> list[str]:
    """What is said about `text`, without the directory."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, environ)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml:1: (file): expected listeners and upstreams, found an empty file"),
        ("---\n", "c.yaml:1: (file): expected listeners and upstreams, found an empty file"),
        ("# only\n", "c.yaml:1: (file): expected listeners and upstreams, found an empty file"),
        ("hello", "c.yaml:1: (file): expected keys with values, found 'hello'"),
        ("- a\n", "c.yaml:1: (file): expected keys with values, found a list"),
        ("a: [\n", "c.yaml:2: (file): expected valid YAML, found "),
        ("a: b: c\n", "c.yaml:1: (file): expected valid YAML, found mapping values"),
        ("a:\n\tb: 1\n", "for the next token: a tab; YAML is indented with spaces"),
        ("r: [{path: /jobs/{id}, name: a}]\n", 'needs quotes here, as in path: "/jobs/{job_id}"'),
        ("a: *b\n", "c.yaml:1: (file): expected valid YAML, found undefined alias"),
        (b"a: 1\nb: \xff\n", "c.yaml:2: (file): expected UTF-8 text, found the byte 0xff"),
        (b"a: 1\n\x00\n", "c.yaml:2: (file): expected text, found the control character U+0000"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: (file): expected one YAML document, found another one"),
        (b"#" * 1024 * 1024 + b"##", "c.yaml:1: (file): expected at most 1048576 bytes"),
        ("[" * 5000, "c.yaml:1: (file): expected valid YAML, found more than 40 levels"),
        ("a: &a [*a]\n", "expected at most 20000 values in 40 levels"),
        ("a: !!python/object:os.system x\n", "expected plain YAML without tags"),
        ("? [a]\n: b\n", "c.yaml:1: (file): expected a word as key, found a list or mapping"),
        ('a: "\\UFFFFFFFF"\n', "(file): expected valid YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str | bytes, message: str) -> None:
    """What cannot be read as one YAML mapping gets one message with its line."""
    assert message in "\n".join(problems(tmp_path, text))


def test_missing_files_and_directories(tmp_path: Path) -> None:
    """A path that is not a file is reported as such."""
    with pytest.raises(ConfigError, match=r"none\.yaml:1: .*found no such file or directory"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="found is a directory"):
        load_config(tmp_path)


def test_an_alias_bomb_is_bounded(tmp_path: Path) -> None:
    """Ten levels of ten aliases end in a message, not in ten thousand million nodes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    assert "at most 20000 values" in problems(tmp_path, "\n".join(lines))[-1]


def test_aliases_and_merge_keys_work(tmp_path: Path) -> None:
    """Anchors save repetition; a section's own keys win over merged ones."""
    text = MINIMAL + (
        "    pool: &pool {keepalive: 1s, queue: 7}\n"
        "  other:\n"
        "    targets: [http://127.0.0.1:8006]\n"
        "    pool: {<<: *pool, queue: 8}\n"
    )
    pool = read(tmp_path, text).upstreams["other"].pool
    assert (pool.keepalive, pool.queue) == (1.0, 8)


def test_json_with_tabs_is_read(tmp_path: Path) -> None:
    """JSON is a config as well, tabs, escapes and surrogate pairs included."""
    document: dict[str, Any] = yaml.safe_load(MINIMAL)
    document["logging"] = {"output": "a/😀"}
    text = json.dumps(document, indent="\t").replace("a/", "a\\/")
    assert read(tmp_path, text).logging.output == "a/😀"


# --- scalars ------------------------------------------------------------------------------------


def test_yaml_traps_do_not_spring(tmp_path: Path) -> None:
    """`on`, `no`, an unquoted time and a token of digits mean what was written."""
    text = MINIMAL + (
        "    retry: {attempts: 2, on: [connect, 502]}\n"
        "    tls: {verify: yes}\n"
        "redis: {url: redis://127.0.0.1}\n"
        'mirrors: {m: {key: "a:{job_id}", sqlite: j.db, cleanup_at: 03:00}}\n'
        "admin: {token: 0012_3}\n"
    )
    config = read(tmp_path, text)
    app = config.upstreams["app"]
    assert app.retry is not None
    assert app.retry.on == ("connect", 502)
    assert app.tls.verify is True
    assert config.mirrors["m"].cleanup_at == (3, 0)
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "0012_3"


def test_the_environment_fills_values(tmp_path: Path) -> None:
    """References work inside quotes, plain, in braces, with defaults, and escaped."""
    text = MINIMAL.replace("http://127.0.0.1:8005", '"http://${HOST}:${PORT:-8005}"') + (
        "    pool: {queue: ${QUEUE}, keepalive: ${KEEP:-3s}}\n"
        "admin: {token: ${TOKEN}, bind: '${EMPTY:-127.0.0.1:1}'}\n"
        "logging: {output: $${HOME}/x}\n"
    )
    environ = {"HOST": "app", "QUEUE": "12", "TOKEN": "000", "EMPTY": "", "HOME": "/root"}
    config = read(tmp_path, text, environ)
    assert str(config.upstreams["app"].targets[0]) == "http://app:8005"
    assert config.upstreams["app"].pool.queue == 12
    assert config.upstreams["app"].pool.keepalive == 3.0
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "000"
    assert config.admin.bind.port == 1
    assert config.logging.output == "${HOME}/x"


def test_the_environment_cannot_inject(tmp_path: Path) -> None:
    """A value with YAML or references in it stays one value."""
    hostile = 'x"\nadmin: {bind: 0.0.0.0:1}\n#${HOME}'
    config = read(tmp_path, MINIMAL + "logging: {output: ${OUT}}\n", {"OUT": hostile})
    assert config.logging.output == hostile
    assert config.admin.bind.loopback


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{output: ${A}}", "a"),
        ("{output: ${A}, level: info}", "a"),
        ("{output: ${A} , level: info}", "a"),
        ("{output: /${A}/${B}.log}", "/a/b.log"),
        ("{output: ${A}${B}}", "ab"),
        ("{output: ${A} ${B}  c}", "a b  c"),
        ("{output: ${A} # a comment\n  }", "a"),
        ("{output: ${A}#1##2}", "a#1##2"),
        ("{output: ${N:-x, y}}", "x, y"),
        ("{output: ${N:-x: [y]}}", "x: [y]"),
        ("{output: ${A}\n  ${B}}", "a b"),
        ("{output: $${A}}", "${A}"),
        ("{output: $}", "$"),
        ("{output: '${A}'}", "a"),
        ('{"output": "${A}"}', "a"),
        ("{output: ${A}:${B}}", "a:b"),
    ],
)
def test_a_reference_inside_braces_needs_no_quotes(
    tmp_path: Path, written: str, expected: str
) -> None:
    """YAML alone would end the value at the inner brace, or at a comma in the default."""
    config = read(tmp_path, f"{MINIMAL}logging: {written}\n", {"A": "a", "B": "b"})
    assert config.logging.output == expected


@pytest.mark.parametrize(
    "written", ["{output: ${A", "{output: ${A'}", "{output: ${", "{output: $ {}"]
)
def test_half_a_reference_is_no_value(tmp_path: Path, written: str) -> None:
    """What looks like the beginning of one is still YAML, and no YAML that could be meant."""
    with pytest.raises(ConfigError, match="expected valid YAML"):
        read(tmp_path, f"{MINIMAL}logging: {written}\n", {"A": "a"})


def test_an_empty_value_of_the_environment_is_null(tmp_path: Path) -> None:
    """`token: ${TOKEN:-}` means no token where the variable is not set."""
    assert read(tmp_path, MINIMAL + 'admin: {token: "${T:-}"}\n').admin.token is None


# --- problems -----------------------------------------------------------------------------------

WRONG: list[tuple[str, list[str]]] = [
    ("admn: {}\n", ["9: admn: expected a known key (did you mean 'admin'?), found 'admn'"]),
    ("zzz: 1\n", ["9: zzz: expected one of listeners, upstreams, redis,"]),
    ("upstreams: {}\n", ["9: upstreams: expected each key once, found it again (first on line 6)"]),
    ("    pool: {max_connections: 0}\n", ["pool.max_connections: expected at least 1, found '0'"]),
    ("    pool: {max_connections: true}\n", ["expected a whole number, found 'true'"]),
    ("    pool: {keepalive: 4}\n", ["expected a duration such as 250ms, 2s, 10m, 24h or 7d"]),
    ("    pool: 5\n", ["upstreams.app.pool: expected keys with values, found '5'"]),
    ("    pool:\n", ["upstreams.app.pool: expected keys with values, found nothing"]),
    ("    retry: {on: [foo]}\n", ["retry.on[0]: expected 'connect', 'reset' or 'timeout' or"]),
    ("    retry: {backoff: 9s}\n", ["retry.max_backoff: expected at least backoff, found less"]),
    ("    tls: {ca: /nowhere}\n", ["tls.ca: expected a readable file, found '/nowhere': no such"]),
    ("logging: {level: LOUD}\n", ["expected 'DEBUG', 'INFO', 'WARNING' or 'ERROR', found 'LOUD'"]),
    ("logging: {level: ${NONE}}\n", ["expected the environment variable NONE, found it unset"]),
    ("logging: {output: '${a b}'}\n", ["expected ${NAME} or ${NAME:-default}, found '${a b}'"]),
    ("logging: {output: '${a'}\n", ["expected ${NAME} or ${NAME:-default}, found '${'"]),
    ("metrics: {bind: 127.0.0.1:8000}\n", ["found 127.0.0.1:8000 beside listeners.in.bind"]),
    ("metrics: {bind: '127.0.0.1:9901'}\n", ["metrics.bind: expected an address of its own"]),
    ("metrics: {}\n", ["9: metrics.bind: expected this key, found nothing"]),
    (
        "  self: {targets: ['http://localhost:8000']}\n",
        ["upstreams.self.targets[0]: expected an address of the service itself, found"],
    ),
    ("admin: {bind: 0.0.0.0:1}\n", ["admin.bind: expected a loopback address, or a token beside"]),
    ("redis: {url: http://x}\n", ["redis.url: expected redis://HOST:PORT/DB"]),
    ('mirrors: {m: {key: "a:{job_id}", sqlite: x}}\n', ["mirrors.m: expected redis.url"]),
    (
        "mirrors: {m: {key: 'a:{job_id}', sqlite: x}, n: {key: 'b:{job_id}', sqlite: ./x}}\n"
        "redis: {url: redis://h}\n",
        ["mirrors.n.sqlite: expected a file of its own, found that of mirrors.m"],
    ),
    (
        "trace: {sqlite: ./x, called_in: {ap: [s], app: [s]}}\n"
        "redis: {url: redis://h}\nmirrors: {m: {key: 'a:{job_id}', sqlite: x}}\n",
        [
            "trace.called_in.ap: expected the name of one of the upstreams, found 'ap'",
            "trace.sqlite: expected a file of its own, found that of mirrors.m",
        ],
    ),
    (
        "redis: {url: redis+cluster://h}\nmirrors: {m: {key: 'a:{job_id}', sqlite: x}}\n",
        ["redis.url: expected one Redis, or Sentinels, where there are mirrors, found a cluster"],
    ),
    (
        "mirrors: {1m: {key: 'a:{job_id}', sqlite: x}}\n",
        ["expected a name of letters, digits, - and _"],
    ),
    ("redis: {<<: 5}\n", ["redis.<<: expected a mapping to merge", "redis.url: expected this key"]),
]


@pytest.mark.parametrize(("more", "message"), WRONG)
def test_problems_below_a_sound_beginning(tmp_path: Path, more: str, message: list[str]) -> None:
    """Each mistake is reported once, with line, key, what was expected and what was found."""
    found = problems(tmp_path, MINIMAL + more)
    assert len(found) == len(message), found
    for line, words in zip(found, message, strict=True):
        assert words in line
        assert line.startswith("c.yaml:9: ")


ROUTES: list[tuple[str, list[str]]] = [
    ("{name: a, path: a, upstream: app}", [".path: expected a path that begins with /"]),
    ("{name: a, path: '/{r:*}/b', upstream: app}", [".path: expected {r:*} only as the last"]),
    ("{name: a, path: /, upstream: apq}", ["found 'apq' (did you mean 'app'?)"]),
    ("{name: a, path: /, upstream: app, methods: [get]}", ["expected a method in upper case"]),
    ("{name: a, path: /, upstream: app, methods: []}", ["expected at least 1 of them"]),
    ("{name: a, path: /, upstrem: app}", ["(did you mean 'upstream'?), found 'upstrem'"]),
    ("{name: all, path: /, upstream: app}", ["expected a name used once in its listener"]),
    ("{name: a b, path: /, upstream: app}", ["expected a name of letters, digits"]),
    ("nonsense", ["routes[1]: expected keys with values, found 'nonsense'"]),
    (
        "{name: a, path: '/j/{id}', upstream: app, job: {mirror: m, reads: job_id}}",
        [
            "job.mirror: expected the name of one of the mirrors, found 'm' (there is none)",
            "job.reads: expected a parameter of the path /j/{id}, found 'job_id'",
        ],
    ),
    (
        "{name: a, path: '/', upstream: app, job: {mirror: m, creates: true, lists: true}}",
        ["expected exactly one of creates, reads, deletes and lists"],
    ),
    ("{name: a, path: '/', upstream: app, job: {mirror: m}}", ["expected exactly one of creates"]),
    (
        "{name: a, path: '/', upstream: app, headers: {request: {set: {Host: x}}}}",
        ["headers.request.set.Host: expected a field that the proxy does not set itself"],
    ),
    (
        "{name: a, path: '/', upstream: app, headers: {response: {remove: [Date]}}}",
        ["headers.response.remove[0]: expected a field that the proxy does not set itself"],
    ),
    (
        "{name: a, path: '/', upstream: app, idempotency: {}}",
        ["idempotency: expected job: {creates: true} beside it"],
    ),
    (
        "{name: b, path: /b, upstream: app,"
        " upload: {also: [{field: audio_file, types: [image/png]}]}}",
        ["upload.also[0].field: expected a field named once", "'audio_file'"],
    ),
    (
        "{name: b, path: /b, upstream: app, upload: {field: null,"
        " also: [{field: c, types: [image/png]}]}}",
        ["upload.also: expected nothing", "the body is the file"],
    ),
    (
        "{name: b, path: /b, upstream: app, upload: {also: [{field: c, types: [image/bmp]}]}}",
        ["upload.also[0].types[0]: expected", "image/jpeg"],
    ),
]


@pytest.mark.parametrize(("route", "message"), ROUTES)
def test_problems_of_routes(tmp_path: Path, route: str, message: list[str]) -> None:
    """Mistakes in a route name the route by its place."""
    found = "\n".join(
        problems(tmp_path, MINIMAL.replace("upstreams:\n", f"      - {route}\nupstreams:\n"))
    )
    for words in message:
        assert words in found
    assert "listeners.in.routes[1]" in found


def test_a_list_of_one_bad_entry_is_not_called_empty(tmp_path: Path) -> None:
    """A mistake deep in the only route is one problem, not also a list that is too short."""
    text = MINIMAL.replace("upstream: app}", "upstream: app, upload: {mode: x}}")
    assert len(problems(tmp_path, text)) == 1


def test_a_bad_key_hides_no_other_problem_of_its_entry(tmp_path: Path) -> None:
    """Of a list's only entry too: what is sound in it is still checked."""
    text = MINIMAL.replace("upstream: app", "upstream: nope, typo: 1")
    assert [line.split(" expected")[0] for line in problems(tmp_path, text)] == [
        "c.yaml:5: listeners.in.routes[0].typo:",
        "c.yaml:5: listeners.in.routes[0].upstream:",
    ]


def test_all_problems_at_once_in_file_order(tmp_path: Path) -> None:
    """Mistakes of every kind are reported together: spelling, types, references and clashes."""
    text = """\
listeners:
  in:
    bnd: 127.0.0.1:8000
    routes:
      - {name: a, path: a, upstream: ap}
      - {name: b, path: /b, upstream: ap}
upstreams:
  app: {targets: [ftp://x], pool: {queue: -1}, breaker: {open_for: 60}}
admin: {bind: 0.0.0.0:1}
drain_timeout: ${UNSET}
"""
    found = problems(tmp_path, text)
    assert [line.split(": expected")[0] for line in found] == [
        "c.yaml:3: listeners.in.bnd",
        "c.yaml:5: listeners.in.routes[0].path",
        "c.yaml:5: listeners.in.routes[0].upstream",
        "c.yaml:6: listeners.in.routes[1].upstream",
        "c.yaml:8: upstreams.app.breaker.open_for",
        "c.yaml:8: upstreams.app.pool.queue",
        "c.yaml:8: upstreams.app.targets[0]",
        "c.yaml:9: admin.bind",
        "c.yaml:10: drain_timeout",
    ]


@pytest.mark.parametrize(
    "more",
    [
        "redis: {url: 'http://me:hunter2@x'}\n",
        "redis: {url: [hunter2]}\n",
        "admin: {token: {a: hunter2}}\n",
        "metrics: {bind: '${MY_TOKEN}'}\n",
        "    host: 'http://me:hunter2@x'\n",
    ],
)
def test_secrets_are_not_shown(tmp_path: Path, more: str) -> None:
    """Neither secret keys nor secret variables nor URLs with passwords show in problems."""
    found = problems(tmp_path, MINIMAL + more, {"MY_TOKEN": "hunter2"})
    assert found
    assert "hunter2" not in "\n".join(found)


def test_a_problem_is_one_line(tmp_path: Path) -> None:
    """A key with a line break or an escape sequence cannot forge output."""
    found = problems(tmp_path, MINIMAL + '"a\\nb\\e[31m": 1\n')
    assert len(found) == 1
    assert found[0].isprintable()


# --- warnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "found"), [("/make-video/", True), ("/Make-Video", True), ("/make-videos", False)]
)
def test_a_spelling_of_a_checked_route_is_a_warning(tmp_path: Path, path: str, found: bool) -> None:
    """A route whose path only spells a checked one's is never reached, and `check` says so."""
    file = tmp_path / "c.yaml"
    routes = (
        "      - {name: up, path: /make-video, methods: [POST], upstream: app, upload: {}}\n"
        f"      - {{name: b, path: {path}, upstream: app, methods: [GET, POST]}}\n"
    )
    file.write_text(MINIMAL.replace("    routes:\n", "    routes:\n" + routes))
    assert ("takes every spelling" in " ".join(map(str, load(file, {}).warnings))) is found


@pytest.mark.parametrize(
    "route",
    [
        "{name: b, path: /b, upstream: app}",
        "{name: b, path: /b, upstream: app, methods: [GET]}",
    ],
)
def test_a_route_behind_a_catch_all_is_a_warning(tmp_path: Path, route: str) -> None:
    """A route that an earlier one always wins over is a warning, and does no harm."""
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL.replace("upstreams:\n", f"      - {route}\nupstreams:\n"))
    warnings = load(file, {}).warnings
    assert [str(warning).removeprefix(f"{tmp_path}/") for warning in warnings] == [
        "c.yaml:6: listeners.in.routes[1]: warning: never reached: 'all' comes first and matches "
        "the same"
    ]


def test_several_routes_can_shadow_one_together(tmp_path: Path) -> None:
    """Methods taken one by one leave nothing for a later route; one method less leaves some."""
    file = tmp_path / "c.yaml"
    rest = "{name: last, path: /x, upstream: app, methods: [GET, POST]}"
    first = "{name: a, path: '/{p}', upstream: app, methods: [GET]}"
    second = "{name: b, path: /x, upstream: app, methods: [POST]}"
    for routes, count in (([first, second, rest], 1), ([first, rest], 0)):
        document = MINIMAL.replace('{name: all, path: "/{rest:*}", upstream: app}', routes[0])
        document = document.replace(
            "upstreams:\n", "".join(f"      - {route}\n" for route in routes[1:]) + "upstreams:\n"
        )
        file.write_text(document)
        assert len(load(file, {}).warnings) == count


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("trusted_proxies: [10.0.0.0/8, 0.0.0.0/0]", "any client can pose as any other"),
        ("trusted_proxies: ['::/0']", "any client can pose as any other"),
        ("trusted_proxies: [10.0.0.0/8]", None),
        ("limits: {connections: 5, per_client: {connections: 6}}", "more than all may have"),
        ("limits: {connections: 5, per_client: {connections: 5}}", None),
    ],
)
def test_limits_that_limit_nobody_are_warnings(
    tmp_path: Path, more: str, message: str | None
) -> None:
    """Trust in everybody, and a share that is larger than the whole."""
    file = tmp_path / "c.yaml"
    file.write_text(
        "listeners:\n"
        "  in:\n"
        "    bind: 127.0.0.1:1\n"
        f"    {more}\n"
        "    routes: [{name: all, path: /, upstream: app}]\n"
        "upstreams: {app: {targets: ['http://127.0.0.1:2']}}\n"
    )
    warnings = [str(warning) for warning in load(file, {}).warnings]
    assert [message in warning for warning in warnings] == ([True] if message else [])


@pytest.mark.parametrize(("name", "count"), [("", 0), ("missing", 1), ("c.yaml", 1)])
def test_a_spool_without_a_directory_is_a_warning(tmp_path: Path, name: str, count: int) -> None:
    """The proxy runs without one, but large bodies are streams then."""
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL + f"spool: {{dir: {tmp_path / name}}}\n")
    assert [warning.key for warning in load(file, {}).warnings] == ["spool.dir"] * count


def test_unused_parts_are_warnings(tmp_path: Path) -> None:
    """An upstream without a route, TLS without https and verification off are worth a word."""
    file = tmp_path / "c.yaml"
    file.write_text(
        MINIMAL + "    tls: {verify: true}\n"
        "  idle: {targets: [https://example.org], tls: {verify: false}}\n"
    )
    assert [warning.key for warning in load(file, {}).warnings] == [
        "upstreams.app.tls",
        "upstreams.idle",
        "upstreams.idle.tls.verify",
    ]


# --- TLS files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate and key, another key, and things that are neither."""
    directory = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.crt")
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
    (directory / "junk").write_text("junk")
    (directory / "locked.key").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return directory


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("one.crt", "one.key", None),
        ("one.crt", "two.key", "tls.key: expected the private key of"),
        ("junk", "one.key", "tls.cert: expected a PEM certificate, found none in"),
        ("one.crt", "junk", "tls.key: expected a PEM private key, found none in"),
        ("one.crt", "locked.key", "tls.key: expected a key without a passphrase"),
        ("gone", "gone", "tls.cert: expected a readable file"),
        (".", "one.key", "is a directory"),
    ],
)
def test_certificates_are_tried(
    tmp_path: Path, pem: Path, cert: str, key: str, message: str | None
) -> None:
    """`check` reports a certificate and key that OpenSSL would refuse at start."""
    text = MINIMAL.replace(
        "upstreams:\n", f"    tls: {{cert: {pem / cert}, key: {pem / key}}}\nupstreams:\n"
    )
    if message is None:
        assert read(tmp_path, text).listeners["in"].tls is not None
    else:
        assert message in "\n".join(problems(tmp_path, text))


def test_authorities_are_tried(tmp_path: Path, pem: Path) -> None:
    """A `ca` file without certificates is a problem."""
    text = MINIMAL.replace("http://127.0.0.1:8005", "https://127.0.0.1:8005")
    read(tmp_path, text + f"    tls: {{ca: {pem / 'ca.crt'}}}\n")
    found = problems(tmp_path, text + f"    tls: {{ca: {pem / 'junk'}}}\n")
    assert "tls.ca: expected PEM certificates of authorities" in found[0]


def test_schemes_are_not_mixed(tmp_path: Path) -> None:
    """One upstream is either TLS or not."""
    text = MINIMAL.replace("8005]", "8005, https://b]")
    assert "expected targets all http:// or all https://, found both" in problems(tmp_path, text)[0]


# --- redaction ----------------------------------------------------------------------------------


def test_a_redacted_config_is_json_and_has_no_secret(tmp_path: Path) -> None:
    """What the admin API shows is written as a person would, with secrets masked."""
    text = MINIMAL + (
        "redis: {url: 'redis://me:hunter2@h:6379/0'}\nadmin: {token: hunter2}\n"
        'mirrors: {m: {key: "a:{job_id}", sqlite: data/j.db}}\n'
    )
    shown = redacted(read(tmp_path, text))
    assert "hunter2" not in json.dumps(shown)
    assert shown["admin"] == {"bind": "127.0.0.1:9901", "token": "***", "hosts": []}
    assert shown["redis"]["url"] == "redis://***@h:6379/0"
    assert shown["listeners"]["in"]["bind"] == "127.0.0.1:8000"
    assert shown["upstreams"]["app"]["targets"] == ["http://127.0.0.1:8005"]
    assert shown["upstreams"]["app"]["pool"]["keepalive"] == "4s"
    assert shown["listeners"]["in"]["limits"]["header"] == "32KiB"
    assert shown["mirrors"]["m"]["cleanup_at"] == "03:00"
    del shown["redis"], shown["mirrors"]
    assert read(tmp_path, yaml.safe_dump(shown)).upstreams["app"].pool.keepalive == 4.0


# --- anything -----------------------------------------------------------------------------------

KEY_WORDS = """\
listeners upstreams in app bind routes name path upstream targets pool job mirror reads tls cert
key ca admin token redis url mirrors sqlite metrics logging output on retry << x"""
KEYS = st.sampled_from(KEY_WORDS.split())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["127.0.0.1:0", "/{a}", "http://a", "${A}", "${A:-b}", "2s", "app", "/dev/null"]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, TREES, TREES)
def test_no_tree_raises_anything_but_a_config_error(
    tmp_path: Path, listener: object, upstream: object, rest: object
) -> None:
    """Whatever is in the file, the answer is a config or a list of problems."""
    tree = {"listeners": {"in": listener}, "upstreams": {"app": upstream}}
    tree |= rest if isinstance(rest, dict) else {"rest": rest}
    with contextlib.suppress(ConfigError):
        read(tmp_path, yaml.safe_dump(tree), {"A": "1"})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*!|>'\"%@`#?\n\t \\ax0${", max_size=40))
def test_no_bytes_raise_anything_but_a_config_error(tmp_path: Path, data: bytes | str) -> None:
    """Arbitrary bytes and YAML punctuation are reported as problems."""
    text = data if isinstance(data, bytes) else data.encode(errors="surrogatepass")
    with pytest.raises(ConfigError):
        read(tmp_path, text)


MIRRORED = f"{MINIMAL}redis: {{url: 'redis://h'}}\nmirrors:\n  m:\n    key: k:{{job_id}}\n"
MIRRORED += "    sqlite: j.db\n"


def test_requeue_can_be_turned_off(tmp_path: Path) -> None:
    """By leaving it out, or by `enabled: false`, which may come from the environment."""
    for given_, on in (("${REQUEUE_JOBS:-true}", True), ("false", False)):
        config = read(tmp_path, f'{MIRRORED}    requeue: {{enabled: "{given_}"}}\n')
        assert (config.mirrors["m"].requeued is not None) == on
    assert read(tmp_path, MIRRORED).mirrors["m"].requeued is None


def warned(tmp_path: Path, text: str) -> list[str]:
    """The warnings about a valid file."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return [str(one).removeprefix(f"{tmp_path}/") for one in load(file, {}).warnings]


def test_removed_keys_have_no_effect_and_a_warning(tmp_path: Path) -> None:
    """File, line and key as ever, and what holds now, whatever the value was."""
    assert warned(tmp_path, f"{MIRRORED}    max_value: [2MiB]\n") == [
        "c.yaml:14: mirrors.m.max_value: warning: removed in 0.2.0 (always 1 MiB, a hundred times "
        "a job document): delete it",
    ]


def test_a_former_name_is_read_as_the_new_one(tmp_path: Path) -> None:
    """With the keys that both have; what is wrong below it is reported where it stands."""
    text = f"{MIRRORED}    rescue: {{unacked_after: 1m, queues: [q]}}\n"
    requeue = read(tmp_path, text).mirrors["m"].requeued
    assert requeue is not None
    assert requeue.queues == ("q",)
    assert [line.partition(" (")[0] for line in warned(tmp_path, text)] == [
        "c.yaml:14: mirrors.m.rescue: warning: the former name of 'requeue': rename it",
        "c.yaml:14: mirrors.m.rescue.unacked_after: warning: removed in 0.2.0",
    ]
    assert problems(tmp_path, f"{MIRRORED}    rescue: {{queues: []}}\n") == [
        "c.yaml:14: mirrors.m.rescue.queues: expected at least 1 of them, found an empty list"
    ]


def test_of_both_names_the_new_one_counts(tmp_path: Path) -> None:
    """The former one is ignored as a whole, with a warning."""
    text = f"{MIRRORED}    rescue: {{queues: [old]}}\n    requeue: {{queues: [new]}}\n"
    requeue = read(tmp_path, text).mirrors["m"].requeued
    assert requeue is not None
    assert requeue.queues == ("new",)
    assert warned(tmp_path, text) == [
        "c.yaml:14: mirrors.m.rescue: warning: not used, since 'requeue' is its new name: delete it"
    ]


@pytest.mark.parametrize("path", [*removed.REMOVED, *removed.RENAMED])
def test_every_removed_key_is_known_by_its_place(path: str) -> None:
    """The key is gone from the schema, the section that held it is not, and the page of upgrades
    names it."""
    *section, name = [int(part) if part == "0" else part for part in
                      path.replace("routes.*", "routes.0").split(".")]  # fmt: skip
    known = shape.known_keys(tuple(section))
    assert known
    assert name not in known
    page = Path(__file__).parents[2] / "docs" / "how-to" / "upgrade.md"
    assert f"| `{path}` |" in page.read_text()
