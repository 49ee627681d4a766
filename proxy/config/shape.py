"""Queries about the schema: which keys are known at a path, and whether it is a secret."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from proxy.config.extensions import StageUse, settings_of
from proxy.config.problems import Key
from proxy.config.schema import Config


def known_keys(path: Key) -> tuple[str, ...]:
    """The keys that the schema has at `path`; none if names are free there, or for a value."""
    return tuple(
        name
        for kind in _kinds_at(path)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name in kind.model_fields
    )


def is_secret(path: Key) -> bool:
    """Whether the value at `path` must never be shown."""
    return SecretStr in _kinds_at(path)


def every_key() -> Iterator[tuple[str, type[BaseModel], str]]:
    """Each key of the schema once: the path of its section (`upstreams.NAME.pool`), the section's
    model and the key's name. A model that is used in several places is listed with its first
    path."""
    seen: set[type[BaseModel]] = set()
    queue: list[tuple[str, type[BaseModel]]] = [("", Config)]
    while queue:
        path, model = queue.pop(0)
        if model in seen:
            continue
        seen.add(model)
        for name, info in model.model_fields.items():
            yield path, model, name
            below = f"{path}.{name}" if path else name
            queue += _models(info.annotation, below)


def _models(annotation: Any, path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield path, kind
        elif get_origin(kind) is dict:
            yield from _models(get_args(kind)[1], f"{path}.NAME")
        elif get_origin(kind) is tuple:
            yield from _models(get_args(kind)[0], f"{path}[]")


def _kinds_at(path: Key) -> list[Any]:
    kinds: list[Any] = [Config]
    for part in path:
        kinds = [below for kind in kinds for below in _descend(kind, part)]
    return kinds


def _descend(kind: Any, part: str | int) -> list[Any]:
    if kind is StageUse:
        settings = settings_of(str(part))
        return [] if settings is None else [settings]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        info = kind.model_fields.get(str(part))
        return _alternatives(info.annotation) if info else []
    if get_origin(kind) is dict:
        return _alternatives(get_args(kind)[1])
    if get_origin(kind) is tuple and isinstance(part, int):
        return _alternatives(get_args(kind)[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, `Annotated` taken off."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]
