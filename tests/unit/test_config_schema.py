"""The committed JSON Schema, the ready config and the reference page agree with the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from proxy.config import shape
from proxy.config.document import Element, read_document
from proxy.config.json_schema import json_schema, json_schema_text
from proxy.config.load import load

ROOT = Path(__file__).parents[2]
READY = ROOT / "config" / "make-video.yaml"


def test_the_committed_schema_is_the_current_one() -> None:
    """`reliability-proxy schema > config/schema.json` was run after the last change."""
    assert (ROOT / "config" / "schema.json").read_text() == json_schema_text()


def typed(element: Element) -> Any:
    """An element as YAML 1.2 would type it, which is how editors see it."""
    if isinstance(element.value, dict):
        return {name: typed(child) for name, child in element.value.items()}
    if isinstance(element.value, list):
        return [typed(child) for child in element.value]
    if element.value in ("true", "false"):
        return element.value == "true"
    return int(element.value) if element.value and element.value.isdigit() else element.value


def test_the_ready_config_fits_the_schema() -> None:
    """Editors find nothing wrong in the ready config, references included."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    filled, _ = read_document(READY, {})
    jsonschema.validate(typed(filled), schema)
    names = {"INGRESS_BIND": "${X}", "UPLOAD_MAX_SIZE": "${X}", "ADMIN_TOKEN": "${X}"}
    unfilled, _ = read_document(READY, names)
    jsonschema.validate(typed(unfilled), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("drain_timeout",), "60"),
        (("unknown",), 1),
        (("admin", "bind"), "nowhere"),
        (("upstreams", "make-video", "pool", "queue"), "many"),
        (("upstreams", "9x"), {"targets": ["http://a"]}),
        (("drain_timeout",), 60),
        (("drain_timeout",), "1..5s"),
        (("upstreams", "youtube-search", "retry", "budget"), 20),
        (("upstreams", "youtube-search", "retry", "budget"), "20"),
        (("upstreams", "make-video", "targets"), ["http://127.0.0.1:8005/base"]),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(path: tuple[str, ...], value: object) -> None:
    """The usual mistakes are underlined in an editor already."""
    document = typed(read_document(READY, {})[0])
    here = document
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


def test_the_ready_config_is_sound() -> None:
    """The ready config loads without problems or warnings, with nothing in the environment."""
    loaded = load(READY, {})
    assert loaded.warnings == ()
    assert loaded.config.admin.token is None


def test_the_reference_names_every_key_with_its_default() -> None:
    """A key added to the schema has its row in configuration.md, with the right default."""
    rows: dict[tuple[str, str], str] = {}
    section = ""
    for line in (ROOT / "docs" / "reference" / "configuration.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip("`").replace("Top level", "")
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 4:
            rows[section, cells[0].strip("`")] = cells[2]
    schema = json_schema()
    wanted = {}
    for path, model, name in shape.every_key():
        described = schema if path == "" else schema["$defs"][model.__name__]
        wanted[path, name] = (
            "required"
            if name in described.get("required", ())
            else default_cell(described["properties"][name])
        )
    assert rows == wanted


def default_cell(described: dict[str, Any]) -> str:
    """A default as the reference writes it."""
    if "default" not in described:
        return "–"
    default = described["default"]
    if isinstance(default, list):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def test_every_key_of_our_own_sections_is_described() -> None:
    """What an editor shows when hovering a key is never empty for listeners and upstreams."""
    schema = json_schema()
    for name in ("Listener", "Route", "Upstream", "Pool", "Admin", "Metrics", "Logging"):
        for key, described in schema["$defs"][name]["properties"].items():
            assert described.get("description"), f"{name}.{key}"
