"""What the documents name exists: imports, attributes, commands, options, files and links."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer.main

from leadership import Candidate, Capability, Follower, Lock, Store, Term, aio, new_store
from leadership import events as events_module
from leadership.backends import consul, etcd, zookeeper
from leadership.backends._peers_settings import _Options as PeersOptions
from leadership.core import _Common as CommonOptions
from leadership.events import Event
from leadership.events import _level as level_of
from leadership.faults import FaultyBackend
from leadership.health import Health
from leadership.metrics import Metrics
from leadership.proxy_command import app
from leadership.routing import Policy
from leadership.testing import ManualClock

from .command import PATIENCE, leadership_here
from .servers.programs import CHECKOUT

README = CHECKOUT / "README.md"
EXAMPLES = CHECKOUT / "examples"
PAGES = [README, CHECKOUT / "bench" / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
SOURCES = sorted((CHECKOUT / "leadership").glob("*.py"))

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

LEFT_TO_THE_READER = "def do_a_little(token: int) -> None: ...\n\n"


def each_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)).replace("/", "-")
    )


def fenced(page: Path, *languages: str) -> Iterator[str]:
    for language, block in FENCED.findall(page.read_text()):
        if language in languages:
            yield block


def section(heading: str) -> str:
    """One of the README's sections, to the next heading of any kind."""
    found = re.search(
        rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", README.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None, heading
    return found[1]


# --- Python --------------------------------------------------------------------------------


def test_every_block_of_python_type_checks(tmp_path: Path) -> None:
    # Parts of a program are checked with it.
    programs = "".join(path.read_text() for path in CHECKOUT.glob("examples/*.py"))
    blocks = [block for page in PAGES for block in fenced(page, "python") if block not in programs]
    assert blocks
    for number, block in enumerate(blocks):
        needs = LEFT_TO_THE_READER if "do_a_little(" in block else ""
        (tmp_path / f"block_{number}.py").write_text(needs + block)
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=", "--check-untyped-defs"),
            *("--follow-imports=silent", "--ignore-missing-imports"),
            # Who leads has a term, and the key was just put: the blocks do not ask twice.
            "--no-strict-optional",
            # What a backend does is the reader's.
            "--disable-error-code=empty-body",
            *(f"--cache-dir={tmp_path / 'cache'}", str(tmp_path)),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda page: page.name)
def test_what_is_imported_by_way_of_example_exists(page: Path) -> None:
    text = page.read_text()
    if page.suffix == ".py":
        text = "\n".join(re.findall(r'""".*?"""', text, re.DOTALL))
    for module, names in re.findall(r"from (leadership[\w.]*) import ([\w, ]+)", text):
        imported = importlib.import_module(module)
        for name in names.replace(" ", "").split(","):
            assert hasattr(imported, name), f"{module} has no {name}"


HANDLES: dict[str, tuple[type, ...]] = {
    "candidate": (Candidate, aio.Candidate),
    "follower": (Follower, aio.Follower),
    "term": (Term, aio.Term),
    "store": (Store, aio.Store),
    "lock": (Lock, aio.Lock),
    "clock": (ManualClock,),
    "faults": (FaultyBackend,),
    "health": (Health,),
    "metrics": (Metrics,),
}


@each_page()
def test_what_is_said_of_a_handle_is_an_attribute_of_it(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for handle, name in re.findall(rf"\b({'|'.join(HANDLES)})\.([a-z]\w*)", code):
            # `leadership.metrics`, or a file's name.
            if f".{handle}." in code or re.search(rf"{handle}\.(py|md|service)\b", code):
                continue
            for kind in HANDLES[handle]:
                assert hasattr(kind, name), f"`{code}`: {kind.__module__}.{kind.__name__}"


@each_page()
def test_every_module_and_name_of_ours_exists(page: Path) -> None:
    for path in re.findall(r"`(leadership(?:\.\w+)+)[`(]", page.read_text()):
        if path == "leadership.backends":
            continue
        module = path
        names: list[str] = []
        while True:
            try:
                found = importlib.import_module(module)
                break
            except ModuleNotFoundError:
                module, _, name = module.rpartition(".")
                names.insert(0, name)
        for name in names:
            found = getattr(found, name)


# --- shell ---------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Each line of shell that the documents and the examples show, and where."""
    for page in PAGES:
        text = page.read_text()
        blocks = [*fenced(page, "sh", ""), *re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)]
        yield from ((page.name, line) for block in blocks for line in lines_of(block))
    for example in EXAMPLES.rglob("*"):
        if example.is_file() and example.suffix != ".pyc":
            text = re.sub(r"^#", " ", example.read_text(), flags=re.MULTILINE)
            text = text.replace("ExecStart=/usr/local/bin/", "").replace("\\\\\n", "\\\n")
            yield from ((example.name, line) for line in lines_of(text))


def lines_of(block: str) -> Iterator[str]:
    for line in textwrap.dedent(block).replace("\\\n", " ").splitlines():
        yield line.strip()


def test_every_command_has_the_options_that_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    seen: set[str] = set()
    for where, line in commands():
        if not re.match(r"leadership (?!\.)[a-z]", line):
            continue
        _, *words = shlex.split(line, comments=True)
        ours = words[: words.index("--")] if "--" in words else words
        ours = ours[: ours.index("...")] if "..." in ours else ours
        name = ours[:2] if ours[0] == "peers" else ours[:1]
        help_text = leadership_here(capfd, *name, "--help").stdout
        assert f"Usage: leadership {' '.join(name)} " in help_text, f"{where}: {line}"
        for option in (word.partition("=")[0] for word in ours if word.startswith("--")):
            assert f"{option} " in help_text, f"{where}: {line}"
        seen.add(" ".join(name))
    assert seen >= {"run", "proxy", "dashboard", "top", "peer", "peers add", "peers list"}


def test_every_command_is_in_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^\| `leadership (\w+)` \|", section("The command line"), re.MULTILINE)
    group = typer.main.get_command(app)
    assert sorted(listed) == sorted(vars(group)["commands"])


def test_every_target_of_make_exists() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    shown = [line for _, line in commands() if line.startswith("make ")]
    assert shown
    for line in shown:
        _, target, *variables = shlex.split(line, comments=True)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for variable in variables:
            name = variable.strip("[]").partition("=")[0]
            assert f"$({name})" in makefile, line


def test_every_program_that_is_to_be_run_is_there() -> None:
    shown = [line.split() for _, line in commands() if line.startswith("python examples/")]
    assert shown
    for _, path, *_ in shown:
        assert (CHECKOUT / path).is_file(), path


# --- links and what is quoted --------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page()
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_found_from_the_readme() -> None:
    found, new = {README}, [README]
    while new:
        page = new.pop()
        for link in re.findall(r"\]\(([^)\s#]+\.md)[)#]", page.read_text()):
            target = (page.parent / link).resolve()
            if target not in found:
                found.add(target)
                new.append(target)
    assert [page for page in PAGES if page.resolve() not in found] == []


def test_what_is_quoted_of_an_example_stands_in_it() -> None:
    """Blocks without a language, and of YAML: each line, but for its indentation."""
    examples = [each.read_text() for each in EXAMPLES.rglob("*") if each.is_file()]
    lines = {line.strip() for text in examples for line in text.splitlines()}
    docs = CHECKOUT / "docs"
    for page in [docs / "load-balancers.md", *(docs / "recipes").glob("*.md")]:
        for block in fenced(page, "", "yaml"):
            if "LEADERSHIP_STORE=" not in block:
                assert {line.strip() for line in block.splitlines()} <= lines, page.name


def test_the_address_of_a_stateful_set_can_be_opened() -> None:
    (address,) = re.findall(
        r"^LEADERSHIP_STORE=(.*)$",
        (CHECKOUT / "docs/recipes/kubernetes.md").read_text(),
        re.MULTILINE,
    )
    new_store(address.replace("$(POD_NAME)", "web-1")).close()


# --- tables and lists ----------------------------------------------------------------------

OPTIONS: dict[str, type[msgspec.Struct]] = {
    "The store": CommonOptions,
    "etcd": etcd._Options,
    "Consul": consul._Options,
    "ZooKeeper": zookeeper._Options,
    "peers: no server": PeersOptions,
}


@pytest.mark.parametrize("heading", OPTIONS)
def test_every_option_of_a_store_is_in_its_section(heading: str) -> None:
    text = section(heading) + (section("Changing the members") if "peers" in heading else "")
    for option in OPTIONS[heading].__struct_fields__:
        assert re.search(rf"[`?&]{option}[`=]", text), option


def test_every_capability_is_listed() -> None:
    (listed,) = re.findall(r"what the backend offers: (.*?);", section("The store"))
    assert {Capability(name) for name in re.findall(r"`(\w+)`", listed)} == set(Capability)


def test_the_table_of_the_policy_has_its_fields_and_their_defaults() -> None:
    text = (CHECKOUT / "docs" / "routing.md").read_text()
    shown = dict(re.findall(r"^\| `(\w+)` \| `?\"?([^|`\"]+)\"?`? \|", text, re.MULTILINE))
    del shown["Policy"]
    assert shown == {each.name: str(each.default) for each in dataclasses.fields(Policy)}


def test_every_metric_is_in_the_table() -> None:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    Metrics(registry)
    table = set(re.findall(r"^\| `(leadership_\w+)` \|", section("Metrics"), re.MULTILINE))
    names = registry._names_to_collectors
    assert {re.sub(r"_total$", "", name) for name in table} == {
        re.sub(r"_(total|created|bucket|count|sum)$", "", name) for name in names
    }


def test_every_event_is_logged_at_the_level_that_is_said() -> None:
    (said,) = re.findall(
        r"^The library logs .*$", section("Events, hooks and logging"), re.MULTILINE
    )
    shown: dict[str, str] = {}
    for level, names in re.findall(r"at (INFO|WARNING|ERROR) ([^;:.]*)[;.]", said):
        shown |= dict.fromkeys(re.findall(r"`(\w+)`", names), level)
    real = {
        kind.__name__: {20: "INFO", 30: "WARNING", 40: "ERROR"}[level_of(kind.__new__(kind))]
        for kind in vars(events_module).values()
        if isinstance(kind, builtins.type)
        and issubclass(kind, Event)
        and level_of(kind.__new__(kind)) > 10
    }
    assert shown == real
