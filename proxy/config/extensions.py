"""Stages from other packages on a route: their names, and their settings, which have own models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from proxy.config.imports import CannotImport, load_object, where_of
from proxy.config.problems import Key
from proxy.config.units import OBJECT_NAME

#: The entry point group in which packages register their stages.
GROUP = "reliability_proxy.stages"


@dataclass(frozen=True, slots=True)
class StageUse:
    """A stage on a route. `kind` is its class, `settings` an instance of its `Settings`."""

    name: str
    kind: type
    settings: BaseModel


class UpstreamRef(str):
    """A setting that names an upstream; `check` verifies that it exists."""

    __slots__ = ()


def installed() -> dict[str, EntryPoint]:
    """The stages of installed packages, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def find_stage(name: str) -> type:
    """The class of that name: an installed one, or `package.module:Class`. Raises
    `CannotImport`."""
    if OBJECT_NAME.fullmatch(name):
        found = load_object(name)
    elif (point := installed().get(name)) is not None:
        found = load_object(point.value)
    else:
        there = ", ".join(installed()) or "none"
        message = f"no stage {name!r} is installed (there are: {there}; others are MODULE:CLASS)"
        raise CannotImport(message)
    if not isinstance(found, type) or not callable(getattr(found, "bind", None)):
        raise CannotImport(f"{name!r} is not a subclass of proxy.extend.Stage")
    settings = getattr(found, "Settings", None)
    if not isinstance(settings, type) or not issubclass(settings, BaseModel):
        raise CannotImport(f"{name!r} has no pydantic model named Settings")
    return found


def settings_of(name: str) -> type[BaseModel] | None:
    """The model of a stage's settings; None if there is no such stage."""
    try:
        model: type[BaseModel] = find_stage(name).Settings  # type: ignore[attr-defined]
    except CannotImport:
        return None
    return model


def upstreams_named(settings: object, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """(key, upstream) of every setting that names one, however deep."""
    if isinstance(settings, UpstreamRef):
        yield key, settings
    elif isinstance(settings, BaseModel):
        for name in type(settings).model_fields:
            yield from upstreams_named(getattr(settings, name), (*key, name))
    elif isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from upstreams_named(value, (*key, str(name)))
    elif isinstance(settings, list | tuple):
        for index, value in enumerate(settings):
            yield from upstreams_named(value, (*key, index))


def _parse(value: object) -> StageUse:
    """`tag-tenant`, or `{tag-tenant: {header: X-Tenant}}`. Values that the settings' model
    refuses are reported with their line."""
    if isinstance(value, StageUse):
        return value
    if isinstance(value, str):
        name, given = value, None
    elif isinstance(value, Mapping) and len(value) == 1:
        name, given = next(iter(value.items()))
    else:
        raise ValueError("expected the name of one stage, alone or with its settings, found others")
    try:
        kind = find_stage(name)
    except CannotImport as error:
        raise ValueError(f"expected a stage that can be used: {error}, found {name!r}") from error
    model: type[BaseModel] = kind.Settings  # type: ignore[attr-defined]
    adapter = TypeAdapter(dict[str, model])  # type: ignore[valid-type]
    try:
        settings = adapter.validate_python({name: given or {}})[name]
    except (ValidationError, KeyboardInterrupt):
        raise
    except (
        BaseException
    ) as error:  # from a validator of the stage, whose message may contain a secret
        message = f"settings that {name!r} can read: its Settings raised {type(error).__name__}"
        raise ValueError(f"expected {message}{where_of(error)}, found others") from error
    return StageUse(name, kind, settings)


def _shown(use: StageUse) -> dict[str, Any]:
    shown = use.settings.model_dump(mode="json", fallback=lambda value: f"<{type(value).__name__}>")
    return {use.name: shown}


Use = Annotated[
    StageUse,
    BeforeValidator(_parse),
    PlainSerializer(_shown, dict[str, Any], when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "minProperties": 1, "maxProperties": 1},
            ]
        }
    ),
]
