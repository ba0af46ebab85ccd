"""What a node wins between two attempts of its candidate is led by it, or else given back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from leadership import Follower, Store, new_store
from leadership.backends.peers import PeersContender
from leadership.errors import StoreUnavailable
from leadership.lease import Claim

from .peers_cluster import PeersCluster, backend_of, cut_off, driver_of, is_ready
from .waiting import wait_until

pytestmark = pytest.mark.backend("peers")

KEY = "service/leader"


class Impatient:
    """A contender of a node that is silent for longer than its attempts wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lost: list[str] = []
        self.contender = backend_of(store).contender(KEY, b"a", 2, own_session=False)

    def campaign(self) -> Claim:
        """An attempt, of a node that reaches the others."""
        knowledge = driver_of(self._store).knowledge
        wait_until(knowledge.reaches_quorum, 20, "the others to answer")
        return self._store.core.call(self.contender.campaign, self.lost.append)

    def fails(self) -> None:
        """An attempt that ends before its node takes part; the node has its entry."""
        with pytest.raises(StoreUnavailable, match="restart silence"):
            self.campaign()

    def wins_between_two_attempts(self) -> int:
        """The token of the term that it wins unasked."""
        self.fails()
        node = driver_of(self._store).node
        wait_until(lambda: node.leaders.leader(KEY) is not None, 20, "the node to lead")
        leader = node.leaders.leader(KEY)
        assert leader is not None
        return leader.term

    async def begins_to_leave(self) -> None:
        """It is cancelled before it is told that the others know."""
        leaving = asyncio.ensure_future(self.contender.leave())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])

    async def begins_to_leave_and_campaigns(self) -> Claim:
        await self.begins_to_leave()
        return await self.contender.campaign(self.lost.append)

    def dismiss(self) -> None:
        """As the node does that is being removed."""

        async def dismiss() -> None:
            assert isinstance(self.contender, PeersContender)
            self.contender.dismissed("for the test")

        self._store.core.call(dismiss)


def leader_of(store: Store) -> str | None:
    # A quorum that was lost for a moment leaves a node unsure for longer than it is asked.
    wait_until(driver_of(store).knowledge.knows_all, 20, "the node to know of all leaders")
    return Follower(store, KEY).leader()


@pytest.fixture
def cluster() -> PeersCluster:
    # The terms are this long, and the node's silence a little longer: a busy machine
    # may stand still for more than a second and the tests still say the same.
    return PeersCluster(3, ttl_ceiling=2)


@pytest.fixture
def store(cluster: PeersCluster) -> Iterator[Store]:
    """Whose node has just been started, beside two that take part."""
    others = cluster.start(1, 2)
    with new_store(cluster.url(0), request_timeout=0.3) as opened:
        yield opened
    for other in others:
        other.close()


@pytest.fixture
def impatient(store: Store) -> Iterator[Impatient]:
    made = Impatient(store)
    yield made
    store.core.call(made.contender.leave)
    assert leader_of(store) is None


def test_it_is_the_next_attempt_that_leads(impatient: Impatient) -> None:
    token = impatient.wins_between_two_attempts()
    claim = impatient.campaign()
    assert claim.token == token, "others were told of this term, and need not hear of another"
    assert claim.lease.is_valid()
    assert not impatient.lost


@pytest.mark.long
def test_a_claim_that_was_returned_is_not_returned_again(impatient: Impatient) -> None:
    impatient.wins_between_two_attempts()
    first = impatient.campaign()
    again = impatient.campaign()
    assert again.token > first.token
    assert again.lease.is_valid()


@pytest.mark.long
def test_what_lapsed_meanwhile_is_not_led(store: Store, impatient: Impatient) -> None:
    token = impatient.wins_between_two_attempts()
    with cut_off(store):
        node = driver_of(store).node
        wait_until(lambda: node.leaders.leader(KEY) is None, 20, "the term's end")
    claim = impatient.campaign()
    assert claim.token > token
    assert claim.lease.is_valid()


@pytest.mark.long
def test_what_was_to_be_given_up_meanwhile_is_not_led(impatient: Impatient) -> None:
    token = impatient.wins_between_two_attempts()
    impatient.dismiss()
    assert impatient.campaign().token > token


def test_what_was_given_back_by_a_cancelled_leave_is_not_led(
    store: Store, impatient: Impatient
) -> None:
    token = impatient.wins_between_two_attempts()
    assert store.core.call(impatient.begins_to_leave_and_campaigns).token > token


@pytest.mark.long
def test_what_a_cancelled_leave_would_have_been_told_ends_no_later_entry(
    store: Store, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = impatient.contender
    assert isinstance(contender, PeersContender)
    impatient.fails()
    with monkeypatch.context() as patch:
        # As where promises were taken back, and those who made them have yet to answer.
        patch.setattr(contender, "released", lambda: None)
        store.core.call(impatient.begins_to_leave)
    wait_until(lambda: is_ready(store), 20, "the node to take part")
    impatient.campaign()

    async def told_late() -> None:
        contender.released()

    store.core.call(told_late)
    store.core.call(contender.leave)
    assert leader_of(store) is None
