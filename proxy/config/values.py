"""The types of config values that all sections share.

Durations are seconds (float), sizes bytes (int), shares 0..1. Every type must accept text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    WithJsonSchema,
)

from proxy.config import patterns, units

_NUMBER = r"[0-9]+(\.[0-9]+)?"

# In the JSON Schema each of these also admits a `${NAME}` reference, see json_schema.py.
Duration = Annotated[
    float,
    BeforeValidator(units.parse_duration),
    PlainSerializer(units.format_duration, str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "string",
                    "pattern": rf"^(0|(?=[0-9])({_NUMBER}\s*d)?\s*({_NUMBER}\s*h)?\s*"
                    rf"({_NUMBER}\s*m)?\s*({_NUMBER}\s*s)?\s*({_NUMBER}\s*ms)?)$",
                },
                {"type": "integer", "const": 0},
            ]
        }
    ),
]
Size = Annotated[
    int,
    BeforeValidator(units.parse_size),
    PlainSerializer(units.format_size, str, when_used="json"),
    WithJsonSchema({"type": ["string", "integer"], "pattern": rf"^{_NUMBER}\s*([KMG]i?)?B?$"}),
]
Share = Annotated[
    float,
    BeforeValidator(units.parse_ratio),
    PlainSerializer(units.format_ratio, str, when_used="json"),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "pattern": rf"^({_NUMBER}\s*%|0(\.[0-9]+)?|1(\.0+)?)$",
            "minimum": 0,
            "maximum": 1,
        }
    ),
]
Rate = Annotated[
    units.Rate,
    BeforeValidator(units.parse_rate),
    PlainSerializer(str, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,9}\s*/\s*(s|m|h)$"}),
]
ByteRate = Annotated[
    int,
    BeforeValidator(units.parse_byte_rate),
    PlainSerializer(units.format_byte_rate, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": rf"^{_NUMBER}\s*([KMG]i?)?B?\s*/\s*s$"}),
]
TimeOfDay = Annotated[
    tuple[int, int],
    BeforeValidator(units.parse_time_of_day),
    PlainSerializer(units.format_time_of_day, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^([01][0-9]|2[0-3]):[0-5][0-9]$"}),
]
Bind = Annotated[
    units.Bind,
    BeforeValidator(units.parse_bind),
    PlainSerializer(str, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$"}),
]
ListenerBind = Annotated[
    units.Bind,
    BeforeValidator(units.parse_listener_bind),
    PlainSerializer(str, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"(:[0-9]{1,5}|^fd:[A-Za-z0-9._@-]{1,255})$"}),
]
Target = Annotated[
    units.TargetAddress,
    BeforeValidator(units.parse_target),
    PlainSerializer(str, str, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^([Hh][Tt][Tt][Pp][Ss]?://[^/]+/?$|unix:/|aiohttp:[^:]+:[^:]+$)",
        }
    ),
]
FilePath = Annotated[
    Path, BeforeValidator(units.expand_home), WithJsonSchema({"type": "string", "minLength": 1})
]
"""A file or directory; `~/` is the home directory of whoever runs the proxy."""

Secret = Annotated[
    SecretStr,
    PlainSerializer(lambda secret: units.mask(secret.get_secret_value()), str, when_used="json"),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]
Method = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9!#$%&'*+.^_`|~-]{0,31}$")]


def _check_pattern(path: str) -> str:
    patterns.parse_pattern(path)
    return path


PathPattern = Annotated[
    str, AfterValidator(_check_pattern), WithJsonSchema({"type": "string", "pattern": "^/"})
]
Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
]


class Model(BaseModel):
    """The base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        validate_default=False,
        hide_input_in_errors=True,
    )
