"""Placeholder until the admin lands."""

from __future__ import annotations
from dataclasses import dataclass, field


@dataclass
class Check:
    ok: bool
    detail: str = ""


@dataclass
class Readiness:
    ready: bool
    checks: dict[str, Check]


@dataclass
class ReloadResult:
    ok: bool
    problems: list[str] = field(default_factory=list)
