"""Every file that a page, a comment or a hook names is there."""

from __future__ import annotations

import re

import yaml

from tests.deployment import ROOT
from tests.unit.test_docs_commands import PAGES, spans

TOP = ["config", "deploy", "docs", "proxy", "scripts", "tests"]

_SPAN = re.compile(r"[a-z_0-9.-]+(?:/[a-z_0-9.-]+)*(?:/|\.py)")
_IN_COMMENT = re.compile(r"(?<![\w/.-])[a-z_][a-z0-9_]*(?:/[a-z_0-9]+)*\.(?:py|md)\b")
#: A package of PyPI, not a file.
_NO_FILE = {"proxy.py"}


def everything() -> set[str]:
    """The files of the repository and, with a final slash, its directories."""
    tree = {path.name for path in ROOT.iterdir() if path.is_file()}
    for top in TOP:
        tree.add(f"{top}/")
        for path in (ROOT / top).rglob("*"):
            if "__pycache__" not in path.parts:
                tree.add(f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}")
    return tree


def there(name: str, tree: set[str]) -> bool:
    """A path from the root or from `proxy/`, or the bare name of a file or room."""
    if name in tree or f"proxy/{name}" in tree:
        return True
    return "/" not in name.rstrip("/") and any(path.endswith(f"/{name}") for path in tree)


def test_files_that_pages_name_exist() -> None:
    """A page that still names a file's old place sends its reader nowhere."""
    tree = everything()
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in spans(page)
        if _SPAN.fullmatch(name) and name not in _NO_FILE and not there(name, tree)
    ]
    assert not missing


def test_files_that_the_code_names_exist() -> None:
    """Comments and docstrings of the package, and what is deployed, name files as they are now."""
    tree = everything()
    missing = []
    for file in sorted(tree):
        if file.startswith(("proxy/", "deploy/", "config/")) and file.endswith((".py", ".yaml")):
            for name in _IN_COMMENT.findall((ROOT / file).read_text(encoding="utf-8")):
                if not any(path == name or path.endswith(f"/{name}") for path in tree):
                    missing.append(f"{file}: {name}")
    assert not missing


def test_hooks_are_the_linters_of_make_test_and_watch_files_that_exist() -> None:
    """A hook for a file's old place never runs again."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    found = {hook["id"]: hook for repository in hooks["repos"] for hook in repository["hooks"]}
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    for linter in ("ruff", "ruff-format", "mypy"):
        assert found[linter]["entry"].replace(" --fix", "") in recipe
    tree = everything()
    for hook in found.values():
        for pattern in hook.get("files", "^()").removeprefix("^(").removesuffix(")").split("|"):
            assert any(re.match(pattern, file) for file in tree), pattern
        for word in hook["entry"].split():
            assert word.startswith(".venv/") or "/" not in word or word in tree
