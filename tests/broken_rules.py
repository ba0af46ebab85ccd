"""The rules that the guarantees rest on, each broken in a copy of the code.

    python -m tests.broken_rules [WORD ...]   # only the rules with these words

runs the rule's test there, and prints what it says: it must fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rules import RULES, Rule
from tests.servers.programs import CHECKOUT, servers_folder

_LONGEST = 100
"""Seconds for one test, its server's start included."""

# The statuses of pytest.
_PASSED, _FAILED = 0, 1


def _copy(folder: Path) -> None:
    """What a test needs of the checkout."""
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    for part in ("leadership", "backends", "tests", "examples", "docs"):
        shutil.copytree(CHECKOUT / part, folder / part, ignore=hidden, symlinks=True)
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / part, folder / part)


def occurrences(rule: Rule) -> int:
    """How often the rule's text stands in its file."""
    return (CHECKOUT / rule.file).read_text().count(rule.right)


def failure(rule: Rule) -> str | None:
    """What the rule's test says where it is broken; None: it does not fail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        file = folder / rule.file
        file.write_text(file.read_text().replace(rule.right, rule.wrong))
        return _failure(folder, rule.test)


def unbroken() -> None:
    """Run all rules' tests where nothing is broken.

    Raises:
        AssertionError: one fails, so that its failing elsewhere would prove nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        said = _failure(folder, *sorted({rule.test for rule in RULES}))
        assert said is None, said


def _failure(folder: Path, *tests: str) -> str | None:
    """What the tests say in a copy; None: they pass."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *(f"tests/{test}" for test in tests)),
            *("-q", "-x", "-m", "", "-p", "no:cacheprovider", "--timeout", str(_LONGEST)),
        ],
        cwd=folder,
        # Programs that a test starts import the copy, too.
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "LEADERSHIP_SERVERS": str(servers_folder()),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == _PASSED:
        return None
    said = [line for line in ran.stdout.splitlines() if line.startswith("E  ")]
    if ran.returncode != _FAILED or not said:
        raise RuntimeError(f"{tests[0]} could not be run: {ran.stdout[-2000:]}{ran.stderr[-500:]}")
    return said[0][1:].strip()


def main() -> int:
    """Break the rules that are named; the status says whether each was noticed."""
    unnoticed = 0
    for rule in RULES:
        if all(word in f"{rule.guarantee} {rule.broken} {rule.test}" for word in sys.argv[1:]):
            told = failure(rule)
            unnoticed += told is None
            sys.stdout.write(f"{rule.guarantee}  {rule.broken}: {told or 'NOT NOTICED'}\n")
            sys.stdout.flush()
    return min(unnoticed, 1)


if __name__ == "__main__":
    sys.exit(main())
