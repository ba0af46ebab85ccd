"""Logging: records with fields, and no secret in anything that the library writes."""

from __future__ import annotations

import io
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress

import pytest
from prometheus_client import CollectorRegistry

from leadership import Candidate, new_store
from leadership.errors import LeadershipError
from leadership.events import (
    Elected,
    Event,
    LeaderChanged,
    LeaseRenewed,
    StoreTrouble,
    WorkOverran,
    is_logged,
    log,
)
from leadership.health import Health
from leadership.metrics import Metrics

from .command import leadership
from .waiting import wait_until

SECRET = "s3cr3t-of-the-test"

# Nothing listens there, so that each says what it could not reach, and how.
ADDRESSES = [
    f"etcd://root:{SECRET}@127.0.0.1:1",
    f"etcd://127.0.0.1:1?user=root&password={SECRET}",
    f"etcd://127.0.0.1:1?user=root&password={SECRET}&ca=/nowhere.pem",
    f"peers://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3?listen=127.0.0.1:0&secret={SECRET}",
    f"peers://127.0.0.1:1,127.0.0.1:2?observe=1&secret={SECRET}&former_secret={SECRET}",
    f"consul://127.0.0.1:1?token={SECRET}",
    f"consul://user:{SECRET}@127.0.0.1:1?token={SECRET}",
    f"zookeeper://user:{SECRET}@127.0.0.1:1/chroot",
    f"zk://127.0.0.1:1?user=user&password={SECRET}",
    f"memory://name?token={SECRET}",
    f"memory://user:{SECRET}@name",
    f"etcd://root:{SECRET}@127.0.0.1:not-a-port",
    f"etcd://root:{SECRET}@[127.0.0.1:1",
    f"nosuch://root:{SECRET}@127.0.0.1:1?token={SECRET}",
    f"root:{SECRET}@127.0.0.1:2379",
    f"127.0.0.1:2379?password={SECRET}",
]


class Written(logging.Handler):
    """All that any logger is given, from DEBUG on, as a formatter with all fields writes it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def text(self) -> str:
        formatter = logging.Formatter("%(message)s")
        return "\n".join(
            f"{formatter.format(record)} {vars(record)}" for record in list(self.records)
        )


@pytest.fixture
def written() -> Iterator[Written]:
    handler, root = Written(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(before)
    root.removeHandler(handler)


def test_a_record_has_each_field_of_its_event(written: Written) -> None:
    event = Elected("service/leader", 12.5, "a", 7, 20.0)
    log(event)
    (record,) = written.records
    fields = {
        name.removeprefix("leadership_"): value
        for name, value in vars(record).items()
        if name.startswith("leadership_")
    }
    assert fields == {
        "event": event,
        "kind": "Elected",
        "key": "service/leader",
        "at": 12.5,
        "id": "a",
        "token": 7,
        "valid_until": 20.0,
    }
    assert (record.name, record.levelno) == ("leadership", logging.INFO)
    plain = {name: value for name, value in fields.items() if name != "event"}
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (WorkOverran("k", 0.0, "a", 1), logging.ERROR),
        (StoreTrouble("k", 0.0, "no answer", 1, 0.1), logging.WARNING),
        (LeaderChanged("k", 0.0, "a", 1), logging.INFO),
        (LeaseRenewed("k", 0.0, 0.1, 5.0), logging.DEBUG),
    ],
)
def test_the_level_says_how_bad_it_is(event: Event, level: int, written: Written) -> None:
    logging.getLogger("leadership").setLevel(level)
    try:
        assert is_logged(event)
        log(event)
        logging.getLogger("leadership").setLevel(level + 1)
        assert not is_logged(event)
        log(event)
    finally:
        logging.getLogger("leadership").setLevel(logging.NOTSET)
    assert [record.levelno for record in written.records] == [level]


@pytest.mark.backend("memory")
def test_a_term_is_logged_at_info(written: Written) -> None:
    with new_store(f"memory://{uuid.uuid4()}") as store:
        with Candidate(store, "service/leader", "a").campaign(timeout=10):
            pass

    def kinds() -> list[str]:
        info = [each for each in written.records if each.levelno == logging.INFO]
        return [each.leadership_kind for each in info if each.name == "leadership"]  # type: ignore[attr-defined]

    wait_until(lambda: kinds() == ["Elected", "TermEnded", "Released"], what=str(kinds()))


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_secret_is_written_anywhere(address: str, written: Written) -> None:
    shown = []
    metrics = Metrics(CollectorRegistry())
    with redirect_stderr(io.StringIO()) as errors:
        try:
            with new_store(address, request_timeout=0.2) as store:
                metrics.watch(store)
                shown += [repr(store), repr(store.core.backend), repr(store.core.backend.address)]
                candidate = Candidate(store, "service/leader", "a", ttl=2)
                health = Health(candidate, metrics=metrics)
                with suppress(TimeoutError):
                    candidate.campaign(timeout=0.5)
                shown += [repr(candidate), repr(candidate.term)]
                for path in ("/leader", "/healthz", "/metrics"):
                    shown.append(health.answer(path).body.decode())
        except (LeadershipError, ValueError) as error:
            cause: BaseException | None = error
            while cause is not None:
                shown += [str(cause), repr(cause)]
                cause = cause.__cause__ or cause.__context__
    text = "\n".join([*shown, errors.getvalue(), written.text()])
    assert text.strip()
    assert SECRET not in text


@pytest.mark.parametrize("address", [ADDRESSES[0], ADDRESSES[5]])
def test_the_command_writes_no_secret_either(address: str) -> None:
    ended = leadership(
        *("run", "--store", address, "--key", "k", "--id", "a", "--ttl", "5"),
        *("--connect-timeout", "0.3", "--json", "--", "true"),
    )
    assert ended.returncode == 2
    assert ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
