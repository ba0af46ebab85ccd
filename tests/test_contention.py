"""The election that any store gets for its keys: unknown outcomes, losses, and manners."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from leadership.backend import Address, Capability, Context, Entry, KVPair
from leadership.backends.memory import MemoryBackend
from leadership.clock import ManualClock
from leadership.contention import (
    DELETED,
    REPLACED,
    CompareAndSwapContender,
    observe_by_watch,
    unseal,
)
from leadership.errors import (
    AccessDenied,
    KeyModified,
    NotLeader,
    NotSupported,
    StoreUnavailable,
)
from leadership.faults import FaultyBackend
from leadership.lease import Claim

from .loops import on_a_loop, settle

pytestmark = pytest.mark.backend("memory")

KEY = "service/leader"
TTL = 10.0


@dataclass(eq=False)
class Member:
    """One contender on a store of its own, and what it was told."""

    contender: CompareAndSwapContender
    store: FaultyBackend
    lost: list[str]

    async def campaign(self) -> Claim:
        return await self.contender.campaign(self.lost.append)

    def campaigning(self) -> asyncio.Future[Claim]:
        return asyncio.ensure_future(self.campaign())


class Scene:
    """A memory store on a clock that the test moves, and those who contend in it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.operator = self._open()
        self._members: list[Member] = []

    def _open(self) -> MemoryBackend:
        context = Context(clock=self.clock, random=random.Random(1), max_clock_drift=0.0)
        context.random.seed(id(context))
        return MemoryBackend(Address("memory", (str(id(self)),)), context)

    def join(self, value: bytes = b"value", ttl: float = TTL) -> Member:
        store = FaultyBackend(self._open())
        contender = store.contender(KEY, value, ttl, own_session=False)
        assert isinstance(contender, CompareAndSwapContender)
        member = Member(contender, store, [])
        self._members.append(member)
        return member

    async def entry(self) -> bytes | None:
        """Whose value stands at the key."""
        envelope = unseal(await self.operator.get(KEY))
        return None if envelope is None else envelope.value

    async def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Move the clock in steps, so that whoever renews has its turn."""
        steps = round(seconds / step)
        for _ in range(steps):
            self.clock.advance(step)
            await settle()

    async def end(self) -> None:
        for member in self._members:
            member.store.heal()
            await member.contender.leave()
            await member.contender.close()
            await member.store.close()
        assert await self.operator.list("") == [], "an entry was left behind"
        await self.operator.close()


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.end()


class TestWinning:
    @on_a_loop
    async def test_of_two_one_leads_and_the_other_follows_with_a_greater_token(self) -> None:
        async with scene() as here:
            first, second = here.join(b"1"), here.join(b"2")
            claim = await first.campaign()
            waiting = second.campaigning()
            await here.pass_time(3 * TTL)
            assert not waiting.done()
            assert claim.valid_until > here.clock.now()
            await first.contender.leave()
            later = await waiting
            assert later.token > claim.token
            assert await here.entry() == b"2"
            assert first.lost == second.lost == []

    @on_a_loop
    async def test_the_deadline_counts_from_the_send_of_the_write_that_won(self) -> None:
        async with scene() as here:
            first, second = here.join(), here.join()
            await first.campaign()
            waiting = second.campaigning()
            await settle()
            here.clock.advance(3)
            sent_at = here.clock.now()
            await first.contender.leave()
            claim = await waiting
            assert claim.valid_until == pytest.approx(sent_at + TTL - 0.1)

    @on_a_loop
    async def test_renewals_keep_it_for_as_long_as_it_wants(self) -> None:
        async with scene() as here:
            leader = here.join()
            claim = await leader.campaign()
            for _ in range(20):
                await here.pass_time(TTL / 2)
                assert claim.valid_until > here.clock.now() + TTL / 2
            assert leader.lost == []
            pair = await here.operator.get(KEY)
            assert pair is not None
            assert pair.index > claim.token, "the renewals did write"

    @on_a_loop
    async def test_who_waits_writes_nothing(self) -> None:
        async with scene() as here:
            await here.join().campaign()
            second = here.join()
            waiting = second.campaigning()
            await here.pass_time(3 * TTL)
            assert second.store.calls == {"watch": 1}
            waiting.cancel()
            await asyncio.wait([waiting])

    @on_a_loop
    async def test_many_who_wait_lead_one_after_the_other(self) -> None:
        async with scene() as here:
            members = [here.join(b"%d" % number) for number in range(8)]
            waiting = {member: member.campaigning() for member in members}
            tokens = []
            while waiting:
                await settle()
                won = [member for member, task in waiting.items() if task.done()]
                assert len(won) == 1
                tokens.append((await waiting.pop(won[0])).token)
                await won[0].contender.leave()
            assert tokens == sorted(set(tokens))
            assert len(tokens) == 8

    @on_a_loop
    async def test_a_dead_leaders_key_is_taken_when_it_lapses_and_not_before(self) -> None:
        async with scene() as here:
            dead, second = here.join(b"1"), here.join(b"2")
            claim = await dead.campaign()
            waiting = second.campaigning()
            dead.store.cut()
            await here.pass_time(TTL - 0.5)
            assert not waiting.done()
            assert claim.valid_until > here.clock.now()
            await here.pass_time(0.5)
            assert claim.valid_until <= here.clock.now(), "two would lead"
            later = await waiting
            assert later.token > claim.token

    @on_a_loop
    async def test_a_strangers_value_at_the_key_is_waited_for(self) -> None:
        async with scene() as here:
            await here.operator.put(KEY, b"no envelope")
            waiting = here.join(b"1").campaigning()
            await here.pass_time(TTL)
            assert not waiting.done()
            await here.operator.delete(KEY)
            await waiting
            assert await here.entry() == b"1"


class TestUnknownOutcomes:
    @on_a_loop
    async def test_a_lost_reply_of_the_winning_write_is_found_again_and_renewed(self) -> None:
        async with scene() as here:
            member = here.join(b"1")
            member.store.lose_reply("atomic_put")
            with pytest.raises(StoreUnavailable):
                await member.campaign()
            assert await here.entry() == b"1"
            created = await here.operator.get(KEY)
            assert created is not None
            await here.pass_time(4)
            claim = await member.campaign()
            assert claim.token == created.index
            # When the lost write was sent is not known: only a new one counts.
            assert claim.valid_until == pytest.approx(here.clock.now() + TTL - 0.1)
            await here.pass_time(2 * TTL)
            assert claim.valid_until > here.clock.now()

    @on_a_loop
    async def test_replies_that_are_lost_again_and_again_leave_one_entry_and_one_token(
        self,
    ) -> None:
        async with scene() as here:
            member = here.join(b"1")
            member.store.lose_reply("atomic_put", times=4)
            tokens = []
            for _ in range(4):
                with pytest.raises(StoreUnavailable):
                    await member.campaign()
                envelope = unseal(pair := await here.operator.get(KEY))
                assert pair is not None
                assert envelope is not None
                tokens.append(pair.index if envelope.token is None else envelope.token)
            assert (await member.campaign()).token == tokens[0]
            assert set(tokens) == {tokens[0]}

    @on_a_loop
    async def test_a_write_that_arrives_late_is_known_as_ours(self) -> None:
        async with scene() as here:
            member = here.join(b"1")
            late: list[Callable[[], object]] = []
            put = member.store.atomic_put

            async def slow(*arguments: object) -> object:
                late.append(lambda: put(*arguments))  # type: ignore[arg-type]
                raise StoreUnavailable("still on its way")

            member.store.atomic_put = slow  # type: ignore[method-assign, assignment]
            with pytest.raises(StoreUnavailable):
                await member.campaign()
            del member.store.atomic_put
            # The second try is overtaken by the first.
            watch = member.store.watch

            async def then_it_arrives(key: str) -> AsyncIterator[object]:
                async with contextlib.aclosing(watch(key)) as states:
                    async for state in states:
                        while late:
                            await late.pop()()  # type: ignore[misc]
                        yield state

            member.store.watch = then_it_arrives  # type: ignore[method-assign, assignment]
            claim = await asyncio.wait_for(member.campaign(), 10)
            assert claim.valid_until > here.clock.now()
            assert await here.entry() == b"1"

    @on_a_loop
    async def test_an_entry_of_unknown_outcome_is_removed_on_leaving(self) -> None:
        async with scene() as here:
            member = here.join(b"1")
            member.store.lose_reply("atomic_put")
            with pytest.raises(StoreUnavailable):
                await member.campaign()
            await member.contender.leave()
            assert await here.entry() is None

    @on_a_loop
    async def test_one_that_lapsed_before_it_was_found_is_made_anew(self) -> None:
        async with scene() as here:
            member = here.join(b"1")
            member.store.lose_reply("atomic_put")
            with pytest.raises(StoreUnavailable):
                await member.campaign()
            created = await here.operator.get(KEY)
            assert created is not None
            here.clock.advance(TTL)
            claim = await member.campaign()
            assert claim.token > created.index

    @on_a_loop
    async def test_a_lost_reply_of_a_renewal_costs_nothing(self) -> None:
        async with scene() as here:
            member = here.join(b"1")
            claim = await member.campaign()
            for _ in range(5):
                member.store.lose_reply("atomic_put")
                await here.pass_time(TTL)
                assert claim.valid_until > here.clock.now() + TTL / 3
            assert member.lost == []

    @on_a_loop
    async def test_a_lost_reply_of_the_release_is_settled_by_the_next_try(self) -> None:
        async with scene() as here:
            member = here.join(b"1")
            await member.campaign()
            member.store.lose_reply("atomic_delete")
            with pytest.raises(StoreUnavailable):
                await member.contender.leave()
            assert await here.entry() is None
            rival = here.join(b"2")
            await rival.campaign()
            await member.contender.leave()
            assert await here.entry() == b"2", "the second try took away another's entry"

    @pytest.mark.parametrize("arrives", ["late", "never"])
    @on_a_loop
    async def test_an_entry_whose_removal_was_sent_does_not_lead_again(self, arrives: str) -> None:
        async with scene() as here:
            member = here.join(b"1")
            first = await member.campaign()
            delete = member.store.atomic_delete
            sent: list[tuple[str, KVPair]] = []

            async def on_its_way(key: str, previous: KVPair) -> None:
                sent.append((key, previous))
                raise StoreUnavailable("still on its way")

            member.store.atomic_delete = on_its_way  # type: ignore[method-assign]
            with pytest.raises(StoreUnavailable):
                await member.contender.leave()
            assert await here.entry() == b"1"
            # Not before it is settled, either.
            with pytest.raises(StoreUnavailable):
                await member.campaign()
            del member.store.atomic_delete
            again = member.campaigning()
            # It gives way first, as who resigned.
            await here.pass_time(2)
            second = await again
            assert second.token > first.token, "a term that was over began again"
            if arrives == "late":
                for removal in sent:
                    with pytest.raises(KeyModified):
                        await delete(*removal)
            await here.pass_time(TTL)
            assert member.lost == []
            assert second.valid_until > here.clock.now()

    @on_a_loop
    async def test_a_claim_that_the_caller_did_not_take_is_given_again_without_a_second_guard(
        self,
    ) -> None:
        async with scene() as here:
            member = here.join(b"1")
            first = await member.campaign()
            again = await member.campaign()
            assert again.token == first.token
            await here.operator.delete(KEY)
            await settle()
            assert member.lost == [DELETED]


class TestLoss:
    @on_a_loop
    async def test_an_operators_delete_is_told_at_once_and_once(self) -> None:
        async with scene() as here:
            member = here.join()
            claim = await member.campaign()
            await settle()
            await here.operator.delete(KEY)
            await settle()
            assert member.lost == [DELETED]
            assert claim.valid_until < here.clock.now()
            calls = member.store.calls.total()
            await here.pass_time(3 * TTL)
            assert member.lost == [DELETED]
            assert member.store.calls.total() == calls, "it goes on asking for a term that is over"
            assert await here.entry() is None, "a lost term was renewed"

    @on_a_loop
    async def test_another_value_in_its_place_is_told_at_once_and_left_alone(self) -> None:
        async with scene() as here:
            member = here.join()
            claim = await member.campaign()
            await here.operator.put(KEY, b"an operator's")
            await settle()
            assert member.lost == [REPLACED]
            assert claim.valid_until < here.clock.now()
            await member.contender.leave()
            pair = await here.operator.get(KEY)
            assert pair is not None
            assert pair.value == b"an operator's"
            await here.operator.delete(KEY)

    @pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
    @on_a_loop
    async def test_a_loss_during_a_cut_is_told_after_it(self, replaced: bool) -> None:
        async with scene() as here:
            member, rival = here.join(b"1"), here.join(b"2")
            claim = await member.campaign()
            await settle()
            with member.store.cut_off():
                await settle()
                await here.operator.delete(KEY)
                if replaced:
                    await rival.campaign()
                await settle()
                assert member.lost == []
            await here.pass_time(1)
            assert member.lost == [REPLACED if replaced else DELETED]
            assert claim.valid_until < here.clock.now()

    @on_a_loop
    async def test_a_cut_is_ridden_out_for_as_long_as_the_lease_holds(self) -> None:
        async with scene() as here:
            member = here.join()
            claim = await member.campaign()
            for _ in range(4):
                with member.store.cut_off():
                    await here.pass_time(0.6 * TTL)
                assert claim.valid_until > here.clock.now()
                # One renewal must do: the next cut comes soon.
                await here.pass_time(0.2 * TTL)
                assert claim.valid_until > here.clock.now() + 0.7 * TTL
            assert member.lost == []

    @on_a_loop
    async def test_after_a_lapse_the_same_entry_does_not_bring_the_claim_back(self) -> None:
        async with scene() as here:
            member = here.join()
            claim = await member.campaign()
            await settle()
            # The process slept: no timer ran, but the clock went on, to just before the
            # key's own expiry, so that the late renewal still finds it.
            here.clock.advance(TTL - 0.05)
            await settle()
            assert await here.entry() is not None
            assert claim.valid_until < here.clock.now()
            assert claim.lease.is_valid(), "the renewal was confirmed, but for nobody"

    @on_a_loop
    async def test_a_refusal_of_the_store_does_not_end_the_guard_nor_the_renewal(self) -> None:
        async with scene() as here:
            member = here.join()
            claim = await member.campaign()
            member.store.refuse("atomic_put", AccessDenied("rights were being changed"), times=2)
            await here.pass_time(TTL)
            assert claim.valid_until > here.clock.now()
            await here.operator.delete(KEY)
            await settle()
            assert member.lost == [DELETED]

    @on_a_loop
    async def test_a_store_that_was_closed_under_it_leaves_no_complaint(self) -> None:
        async with scene() as here:
            member = here.join()
            await member.campaign()
            await settle()
            await member.store.close()
            await here.pass_time(TTL)
            await member.contender.close()
            member.contender._nonce = None


class TestManners:
    @on_a_loop
    async def test_who_resigned_gives_way_to_who_waits(self) -> None:
        async with scene() as here:
            first, second = here.join(b"1"), here.join(b"2")
            await first.campaign()
            waiting = second.campaigning()
            await settle()
            # It asks again before the other had any turn.
            await first.contender.leave()
            again = first.campaigning()
            await waiting
            assert await here.entry() == b"2"
            assert not again.done()
            await second.contender.leave()
            await again

    @pytest.mark.parametrize("ttl", [2.0, TTL])
    @on_a_loop
    async def test_who_resigned_where_nobody_waits_leads_again_after_a_moment(
        self, ttl: float
    ) -> None:
        async with scene() as here:
            member = here.join(ttl=ttl)
            first = await member.campaign()
            await member.contender.leave()
            again = member.campaigning()
            moment = min(1.0, ttl / 4)
            await here.pass_time(moment - 0.1, step=0.1)
            assert not again.done()
            await here.pass_time(0.1, step=0.1)
            assert (await again).token > first.token

    @on_a_loop
    async def test_also_after_a_release_that_needed_a_second_try_it_gives_way(self) -> None:
        async with scene() as here:
            member = here.join()
            await member.campaign()
            member.store.lose_reply("atomic_delete")
            with pytest.raises(StoreUnavailable):
                await member.contender.leave()
            await member.contender.leave()
            again = member.campaigning()
            await settle()
            assert not again.done()
            await here.pass_time(1)
            await again

    @on_a_loop
    async def test_a_cut_while_it_gives_way_leaves_no_complaint(self) -> None:
        async with scene() as here:
            member = here.join()
            await member.campaign()
            await member.contender.leave()
            again = member.campaigning()
            await settle()
            member.store.cut()
            with pytest.raises(StoreUnavailable):
                await again

    @on_a_loop
    async def test_who_only_waited_has_nothing_to_give_way_for(self) -> None:
        async with scene() as here:
            first, second = here.join(b"1"), here.join(b"2")
            await first.campaign()
            waiting = second.campaigning()
            await settle()
            waiting.cancel()
            await asyncio.wait([waiting])
            await second.contender.leave()
            await first.contender.leave()
            await second.campaign()

    @on_a_loop
    async def test_leaving_is_idempotent_and_harms_nobody(self) -> None:
        async with scene() as here:
            first, second = here.join(b"1"), here.join(b"2")
            await second.contender.leave()
            claim = await first.campaign()
            for _ in range(2):
                await second.contender.leave()
                await second.contender.close()
            assert await here.entry() == b"1"
            await first.contender.leave()
            await first.contender.leave()
            assert first.lost == []
            assert claim.token > 0


class TestProclaiming:
    @on_a_loop
    async def test_it_changes_the_value_now_and_in_later_terms_but_not_the_token(self) -> None:
        async with scene() as here:
            member = here.join(b"old")
            claim = await member.campaign()
            await member.contender.proclaim(b"new")
            assert await here.entry() == b"new"
            await here.pass_time(2 * TTL)
            assert claim.valid_until > here.clock.now()
            assert await here.entry() == b"new"
            await member.contender.leave()
            again = member.campaigning()
            await here.pass_time(1)
            await again
            assert await here.entry() == b"new"

    @on_a_loop
    async def test_who_does_not_lead_may_not(self) -> None:
        async with scene() as here:
            first, second = here.join(b"1"), here.join(b"2")
            with pytest.raises(NotLeader):
                await second.contender.proclaim(b"early")
            await first.campaign()
            with pytest.raises(NotLeader):
                await second.contender.proclaim(b"usurped")
            await here.operator.delete(KEY)
            await second.campaign()
            with pytest.raises(NotLeader):
                await first.contender.proclaim(b"late")
            assert await here.entry() == b"2"

    @on_a_loop
    async def test_a_lost_reply_may_be_tried_again(self) -> None:
        async with scene() as here:
            member = here.join(b"old")
            claim = await member.campaign()
            member.store.lose_reply("atomic_put")
            with pytest.raises(StoreUnavailable):
                await member.contender.proclaim(b"new")
            await member.contender.proclaim(b"new")
            assert await here.entry() == b"new"
            await here.pass_time(TTL)
            assert claim.valid_until > here.clock.now()


class TestObserving:
    @on_a_loop
    async def test_who_leads_is_told_once_and_renewals_are_not(self) -> None:
        async with scene() as here:
            told: list[Entry | None] = []

            async def observe() -> None:
                async with contextlib.aclosing(observe_by_watch(here.operator, KEY)) as entries:
                    async for entry in entries:
                        told.append(entry)  # noqa: PERF401

            observing = asyncio.ensure_future(observe())
            await settle()
            assert told == [None]
            first, second = here.join(b"1"), here.join(b"1")
            claim = await first.campaign()
            await here.pass_time(3 * TTL)
            assert told == [None, Entry(b"1", claim.token)]
            await first.contender.proclaim(b"new")
            await settle()
            await first.contender.leave()
            await settle()
            later = await second.campaign()
            await settle()
            assert told[2:] == [Entry(b"new", claim.token), None, Entry(b"1", later.token)]
            await here.operator.put(KEY, b"no envelope")
            await settle()
            assert told[5:] == [None]
            await here.operator.delete(KEY)
            await settle()
            assert len(told) == 6
            observing.cancel()
            await asyncio.wait([observing])

    @on_a_loop
    async def test_a_late_observer_is_told_the_token_of_the_term_and_not_of_its_renewal(
        self,
    ) -> None:
        async with scene() as here:
            claim = await here.join(b"1").campaign()
            await here.pass_time(2 * TTL)
            async with contextlib.aclosing(observe_by_watch(here.operator, KEY)) as entries:
                assert await anext(entries) == Entry(b"1", claim.token)


class PlainBackend(MemoryBackend):
    capabilities = frozenset({Capability.KV, Capability.CAS})


def test_a_store_without_what_it_takes_is_refused_by_name() -> None:
    plain = PlainBackend(Address("plain", ("x",)), Context())
    with pytest.raises(NotSupported, match=r"ttl, watch.*'plain'"):
        plain.contender(KEY, b"", TTL, own_session=False)
    with pytest.raises(NotSupported, match="watch"):
        plain.observe(KEY)
