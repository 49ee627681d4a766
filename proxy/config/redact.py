"""The config with its secrets masked, for `GET /api/config` and for people."""

from __future__ import annotations

from typing import Any

from proxy.config.schema import Config


def redacted(config: Config) -> dict[str, Any]:
    """The complete config with defaults, ready for JSON, and as a person would write it.

    Durations are `2s`, sizes `50MiB`, shares `20%`; secrets are `***`, URLs lose user and password.
    """
    document: dict[str, Any] = config.model_dump(mode="json")
    return document
