"""The mutation tester runs tests on a changed copy, never on the tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.mutants.operators import Mutant, mutants
from tests.mutants.trial import Copy, Verdict


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a tree with one function and one test, in a repository of its own."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "limit.py").write_text("def full(n):\n    return n >= 3\n")
    (tree / "test_limit.py").write_text(
        "from limit import full\n\n\ndef test_it():\n    assert full(3)\n"
    )
    (tree / "ignored.txt").write_text("")
    (tree / ".gitignore").write_text("ignored.txt\n")
    subprocess.run(["git", "init", "-q", tree], check=True)
    made = tmp_path / "copy"
    copied = Copy(tree, made)
    assert sorted(one.name for one in made.iterdir()) == [".gitignore", "limit.py", "test_limit.py"]
    return copied


def test_mutants_are_tried_in_a_copy(copy: Copy, tmp_path: Path) -> None:
    """An edit that the test notices is killed, one that it does not survives, and in the end tree
    and copy are as they were."""
    source = (tmp_path / "tree" / "limit.py").read_bytes()
    verdicts = {
        one.replacement: copy.try_out("limit.py", one, ["test_limit.py::test_it"], 60)
        for one in mutants(source)
    }
    assert verdicts == {b">": Verdict.KILLED, b"4": Verdict.KILLED}
    always = Mutant(2, "return", source.index(b"n >= 3"), source.index(b"3") + 1, b"True")
    assert copy.try_out("limit.py", always, ["test_limit.py"], 60) is Verdict.SURVIVED
    assert copy.try_out("limit.py", always, ["test_limit.py"], 0.001) is Verdict.TIMED_OUT
    for folder in ("tree", "copy"):
        assert (tmp_path / folder / "limit.py").read_bytes() == source
