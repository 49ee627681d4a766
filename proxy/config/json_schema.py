"""The config's JSON Schema (draft 2020-12), for editors and other tools.

It describes the file before environment variables are filled in, so any single value may be a
`${NAME}` reference. It covers types and keys; rules between keys are checked by the loader.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from typing import Any

from pydantic import BaseModel, PydanticUserError

from proxy.config import shape
from proxy.config.extensions import installed, settings_of
from proxy.config.schema import Config

_REFERENCE = {"$ref": "#/$defs/Reference"}
_SCALARS = {"string", "integer", "number", "boolean"}
_ANNOTATIONS = ("title", "description", "default")


def json_schema() -> dict[str, Any]:
    """The schema as a JSON-ready document."""
    schema = Config.model_json_schema()
    models = {model.__name__: model for _, model, _ in shape.every_key()}
    definitions: dict[str, Any] = schema.pop("$defs")
    for name, definition in {**definitions, "Config": schema}.items():
        _prepare(definition, models[name])
    _add_stages(definitions)
    definitions["Reference"] = {
        "description": "A value taken from the environment: ${NAME} or ${NAME:-default}.",
        "type": "string",
        "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^{}]*)?\}",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:reliability-proxy:config",
        **schema,
        "title": "reliability-proxy config",
        "$defs": dict(sorted(definitions.items())),
    }


def json_schema_text() -> str:
    """The schema as the text of `config/schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _add_stages(definitions: dict[str, Any]) -> None:
    """Add the settings of installed stages to the places where routes use them."""
    known: dict[str, Any] = {}
    for name in installed():
        model = settings_of(name)
        if model is None:
            continue  # it cannot be imported; `check` says why once it is used
        try:
            settings = model.model_json_schema(ref_template="#/$defs/" + name + ".{model}")
        except PydanticUserError:
            known[name] = {}  # a type without a schema: editors accept anything
            continue
        for inner, definition in settings.pop("$defs", {}).items():
            definitions[f"{name}.{inner}"] = definition
        for key, described in settings.get("properties", {}).items():
            settings["properties"][key] = _admit_references(described)
        known[name] = {"anyOf": [settings, {"type": "null"}]}
    if known:
        for member in definitions["Route"]["properties"]["use"]["items"]["anyOf"]:
            if member.get("type") == "object":
                member["properties"] = known


def _prepare(definition: dict[str, Any], model: type[BaseModel]) -> None:
    defaults = model.model_construct().model_dump(mode="json", warnings=False)
    texts = _descriptions(model)
    for name, described in definition["properties"].items():
        described.pop("title", None)
        if name in texts:
            described = dict(sorted({**described, "description": texts[name]}.items()))
        default = described.pop("default", None)
        described = definition["properties"][name] = _admit_references(described)
        # Sections describe their own defaults, key by key.
        if default is not None and not isinstance(defaults[name], dict):
            described["default"] = defaults[name]


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """The texts under the keys of a section. pydantic could read them when the class is created,
    but parsing the source of every section would delay each start of the proxy by 70 ms."""
    (section,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(section, ast.ClassDef)
    return {
        key.target.id: inspect.cleandoc(text.value.value)
        for key, text in itertools.pairwise(section.body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


def _admit_references(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with a reference allowed wherever a single value is."""
    if _is_scalar(schema):
        outside = {word: schema.pop(word) for word in _ANNOTATIONS if word in schema}
        return {**outside, "anyOf": [schema, _REFERENCE]}
    if "anyOf" in schema:
        members: list[dict[str, Any]] = schema["anyOf"]
        others = [_admit_references(member) for member in members if not _is_scalar(member)]
        scalars = [member for member in members if _is_scalar(member)]
        schema["anyOf"] = scalars + ([_REFERENCE] if scalars else []) + others
    if "patternProperties" in schema:
        schema["additionalProperties"] = False
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            schema[word] = _admit_references(schema[word])
    return schema


def _is_scalar(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return not _SCALARS.isdisjoint([kind] if isinstance(kind, str) else kind or ())
