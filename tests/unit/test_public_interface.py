"""What others write programs against: changed on purpose only, with a line in the changelog."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from proxy import embed, extend, pytest_plugin
from proxy.forward.routing import plan

EXTEND = {
    "Duration": "",
    "HeaderName": "",
    "Hooks": "finished request response timeout",
    "Outcome": "attempts bytes_in bytes_out code duration status target upstream",
    "Ratio": "",
    "Refused": "",
    "Request": "client cookies correlation_id headers log method path query remove_header route"
    " set_header state target use_upstream",
    "Response": "add_header headers remove_header set_header status",
    "Route": "direction listener methods name path upstream upstreams",
    "Secret": "",
    "Settings": "",
    "Size": "",
    "Stage": "Settings bind close settings",
    "UpstreamName": "",
}
EMBED = {
    "CannotReload": "",
    "CannotStart": "",
    "ConfigError": "problems",
    "ReliabilityProxy": "admin_url reload start stop test_server url",
}


def names(kind: object) -> set[str]:
    """The public attributes that a class defines itself, those set in its `__init__` included."""
    if not inspect.isclass(kind):
        return set()
    own = set(vars(kind)) | set(getattr(kind, "__annotations__", {}))
    own |= set(re.findall(r"^ +self\.(\w+)(?:: [^=]+)? = ", inspect.getsource(kind), re.MULTILINE))
    return {name for name in own if not name.startswith("_") and name.isidentifier()}


@pytest.mark.parametrize(("module", "recorded"), [(extend, EXTEND), (embed, EMBED)])
def test_public_names_are_those_recorded(module: ModuleType, recorded: dict[str, str]) -> None:
    """No name appears or disappears unnoticed."""
    assert set(module.__all__) == set(recorded)
    for name, members in recorded.items():
        if members:
            assert names(getattr(module, name)) == set(members.split()), name


def test_signatures_are_those_recorded() -> None:
    """Parameters that callers name are part of the interface."""
    proxy = list(inspect.signature(embed.ReliabilityProxy).parameters)
    assert proxy == ["config", "overrides", "apps", "free_ports", "directory", "environ"]
    refused = list(inspect.signature(extend.Refused).parameters)
    assert refused == ["status", "detail", "code", "retry_after", "challenge", "facts"]


def test_hooks_of_both_kinds_of_stages_have_the_same_names() -> None:
    """What the proxy's own stages have beside them is theirs alone (docs, decisions/stages.md)."""
    public = {one.name for one in fields(extend.Hooks)} - {"timeout"}
    assert public == {"request", "response", "finished"}
    assert public < {one.name for one in fields(plan.Hooks)}


def test_our_own_tests_use_it() -> None:
    """Whoever starts a whole proxy in his process does it as others do."""
    tests = Path(__file__).parents[1]
    starters = [
        file.name
        for file in tests.rglob("*.py")
        if "from proxy.app.composition import" in file.read_text(encoding="utf-8")
        and file != Path(__file__)
    ]
    assert starters == []


def test_fixtures_are_those_recorded() -> None:
    """The plugin's names live in everybody's tests."""
    public = {name for name in vars(pytest_plugin) if name.startswith("reliability_")}
    assert public == {"reliability_proxy", "reliability_redis"}
