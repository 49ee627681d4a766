"""The fuzz targets hold on their seeds and around them; `make fuzz` searches further."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import TARGETS, Target


def variants(target: Target, number: int) -> list[bytes]:
    """Seeds with pieces changed, left out, repeated and put in, the same in every run."""
    chance = random.Random(7)
    made = []
    for _ in range(number):
        data = bytearray(chance.choice(target.seeds))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data) + 1)
            piece = chance.choice((*target.words, bytes((chance.randrange(256),)), b""))
            data[at : at + chance.choice((0, 0, 1, len(piece)))] = piece
        made.append(bytes(data))
    return made


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_neighbours(name: str) -> None:
    """What is parsed means the same to everybody, whatever the bytes."""
    target = TARGETS[name]
    for data in (b"", *target.seeds, *variants(target, 400)):
        target.check(data)


def test_every_target_can_be_named() -> None:
    """The command line knows all targets, without importing them."""
    assert set(NAMES) == set(TARGETS)
