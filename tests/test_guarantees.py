"""The pages on guarantees and on other libraries say only what is so."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .broken_rules import failure, occurrences, unbroken
from .command import PATIENCE
from .rules import RULES, Rule
from .servers.etcd_client import EtcdClient
from .servers.programs import CHECKOUT

PAGE = (CHECKOUT / "docs" / "guarantees.md").read_text()
README = (CHECKOUT / "README.md").read_text()
COMPARISON = (CHECKOUT / "docs" / "comparison.md").read_text()
EXAMPLE = CHECKOUT / "examples" / "fenced_writes.py"

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")


def found(root: str, *names: str) -> Any:
    """What stands under a dotted name, whose first part may be a module of several words."""
    thing: Any = importlib.import_module(root)
    for number, name in enumerate(names):
        if hasattr(thing, name):
            thing = getattr(thing, name)
        else:
            thing = importlib.import_module(".".join((root, *names[: number + 1])))
    return thing


def written(file: Path, url: str) -> list[str]:
    """What the example prints."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(file), url],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout.splitlines()


@posix_only
def test_a_writer_that_slept_past_its_term_is_refused(etcd: EtcdClient) -> None:
    printed = written(EXAMPLE, etcd.url)
    assert printed[2:4] == ["the first writes: refused", "the first leads: False"]
    assert "\n".join(printed) in PAGE


@posix_only
def test_a_register_that_does_not_compare_takes_the_late_write(
    etcd: EtcdClient, tmp_path: Path
) -> None:
    code = EXAMPLE.read_text()
    condition = ' WHERE token <= ?", (value, token, token)'
    assert code.count(condition) == 1
    forgetful = tmp_path / "forgetful.py"
    forgetful.write_text(code.replace(condition, '", (value, token)'))
    printed = written(forgetful, etcd.url)
    assert printed[2] == "the first writes: accepted"
    assert printed[-1] == "the register holds what was written by the first"


def test_the_page_shows_the_example() -> None:
    shown = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 2
    assert all(block in EXAMPLE.read_text() for block in shown)


@pytest.mark.parametrize("page", [PAGE, COMPARISON], ids=["guarantees", "comparison"])
def test_the_page_names_only_what_exists(page: str) -> None:
    tests = set(re.findall(r"`(?:tests/)?([\w/]+)\.py::([\w:]+)`", page))
    functions = set(re.findall(r"`(leadership(?:\.\w+)+)`", page))
    files = set(re.findall(r"`((?:bench|examples|leadership|tests)/[\w/]+\.\w+)`", page))
    assert tests
    for file, name in tests:
        found("tests." + file.replace("/", "."), *name.split("::"))
    for function in functions:
        root, *names = function.split(".")
        found(root, *names)
    for each in files:
        assert (CHECKOUT / each).exists(), each
    modules = set(re.findall(r"`(?:python -m )?((?:bench|tests)\.\w+)", page))
    for each in modules:
        assert (CHECKOUT / each.replace(".", "/")).with_suffix(".py").exists(), each


def test_the_page_shows_each_rule_and_its_test() -> None:
    sections = re.split(r"^## (\d)\. .*$", PAGE, flags=re.MULTILINE)
    shown = [
        (int(number), broken, test)
        for number, section in zip(sections[1::2], sections[2::2], strict=True)
        for broken, test in re.findall(
            r"^\| (.+) \| `([\w./]+::[\w:]+)` \|$", section, re.MULTILINE
        )
    ]
    assert shown == [(rule.guarantee, rule.broken, rule.test) for rule in RULES]


def test_the_page_has_each_link_right() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= anchors
    assert set(re.findall(r"\]\(guarantees\.md#([^)]*)\)", COMPARISON)) <= anchors
    for link in re.findall(r"\]\((?!#|http)([^)#]*)", PAGE + COMPARISON):
        assert (CHECKOUT / "docs" / link).exists(), link


def test_each_rule_stands_once_in_its_file() -> None:
    assert {rule.broken: occurrences(rule) for rule in RULES if occurrences(rule) != 1} == {}
    assert Counter(rule.broken for rule in RULES).most_common(1)[0][1] == 1


def cells_of_the_readme() -> dict[tuple[str, str], str]:
    table = README.partition("## Beside others")[2].partition("\n## ")[0]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    )
    return {
        (row[0], other): cell
        for row in rows
        for other, cell in zip(head[1:], row[1:], strict=True)
        if cell
    }


def test_each_cell_of_the_readmes_table_has_its_evidence() -> None:
    sections = re.split(r"^## (.*)$", COMPARISON, flags=re.MULTILINE)
    shown = {
        (what, other): cell
        for what, section in zip(sections[1::2], sections[2::2], strict=True)
        for other, cell in re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", section, re.MULTILINE)
    }
    assert cells_of_the_readme() == shown


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_where_nothing_is_broken_the_rules_tests_pass() -> None:
    unbroken()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.broken)
def test_where_a_rule_is_broken_its_test_fails(rule: Rule) -> None:
    assert failure(rule) is not None
