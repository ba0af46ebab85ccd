"""Rules of the house that a reader would have to check by eye."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "leadership").glob("*.py"), *(ROOT / "backends").glob("*.py")])
# The one place that reads time, and the guardian, which imports nothing of ours. Chance comes
# from `random.Random` objects only.
MAY_READ_TIME = {"clock.py", "_guardian.py"}


def uses(tree: ast.AST, module: str) -> list[str]:
    """The attributes of a module that are used, and whether names are imported out of it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == module:
                found.append(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            found.extend(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[path.name for path in SOURCES])
def test_time_and_chance_are_injected(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name not in MAY_READ_TIME:
        assert uses(tree, "time") == []
    assert set(uses(tree, "random")) <= {"Random"}


@pytest.mark.parametrize("path", SOURCES, ids=[path.name for path in SOURCES])
def test_the_core_imports_no_backend(path: Path) -> None:
    if path.parent.name == "leadership":
        modules = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
        }
        assert not any("backends" in module for module in modules)


def test_files_stay_small() -> None:
    long = {path.name: n for path in SOURCES if (n := len(path.read_text().splitlines())) > 650}
    assert long == {}, "a file over about 500 lines wants to be two"
