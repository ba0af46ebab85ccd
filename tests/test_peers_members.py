"""The members of a cluster of real processes change while it elects, and nobody is deposed."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leadership import Follower, Membership, Store, aio, new_store
from leadership.backends._peers_http import Answer
from leadership.backends._peers_members import MEMBERS, MembersQuestion
from leadership.errors import (
    AccessDenied,
    ConfigurationError,
    LeadershipError,
    NotSupported,
    StoreUnavailable,
)

from .candidate_process import CandidateProcess
from .command import leadership
from .loops import on_a_loop
from .peers_cluster import SECRET, backend_of
from .servers.ports import free_port
from .waiting import wait_until

pytestmark = pytest.mark.backend("peers")

KEY = "service/leader"
COMMON: dict[str, Any] = {"secret": SECRET, "wall_clock_skew": 0.1}

# Who stands still for a second on a busy machine is not deposed then.
long_terms = pytest.mark.parametrize("ttl", [4])


class Cluster:
    """Nodes, each a process with a candidate and, if not told otherwise, a directory of its own."""

    def __init__(self, directory: Path, ttl: float, stack: contextlib.ExitStack) -> None:
        self.ttl = ttl
        self.common = {**COMMON, "ttl_ceiling": ttl}
        self.first = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self.processes: dict[str, CandidateProcess] = {}
        self._directory = directory
        self._stack = stack

    def url(self, **options: Any) -> str:
        """The original list, whatever became of it since."""
        query = "&".join(f"{name}={value}" for name, value in {**self.common, **options}.items())
        return f"peers://{','.join(self.first)}?{query}".replace(" ", "%20")

    def start(self, address: str, **options: Any) -> CandidateProcess:
        directory = self._directory / address.rpartition(":")[2]
        given = {"listen": address, "state_dir": directory, **options}
        kept = {name: value for name, value in given.items() if value is not None}
        process = CandidateProcess(self.url(**kept), KEY, address, ttl=self.ttl)
        self.processes[address] = self._stack.enter_context(process)
        return process

    def begin(self, *addresses: str, **options: Any) -> None:
        """Start the first nodes of a cluster that never ran before."""
        for address in addresses:
            self.start(address, bootstrap=1, wall_clock_skew=0, **options)

    def join(self) -> str:
        """A new node, which waits to be added; its address."""
        address = f"127.0.0.1:{free_port()}"
        self.start(address, join=1)
        return address

    def client(self, *addresses: str, **options: Any) -> Store:
        """Of an operator, or a follower, who knows of these addresses."""
        given = {**self.common, "observe": True, **options}
        kept = {name: value for name, value in given.items() if value is not None}
        return self._stack.enter_context(new_store("peers", addresses or self.first, **kept))

    def leader(self, client: Store, after: CandidateProcess | None = None) -> CandidateProcess:
        """Whoever leads, by what followers are told; after another one, who may still be told."""
        with Follower(client, KEY).follow_election() as leaders:
            name = next(each for each in leaders if each and (not after or each != after.name))
        # Others may hear of a term while its own process is still about to.
        latest(self.processes[name], "elected")
        return self.processes[name]


@pytest.fixture
def ttl() -> float:
    return 1


@pytest.fixture
def cluster(tmp_path: Path, ttl: float) -> Iterator[Cluster]:
    """Not started yet."""
    with contextlib.ExitStack() as stack:
        yield Cluster(tmp_path, ttl, stack)


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Three nodes with directories, one of which leads."""
    cluster.begin(*cluster.first)
    cluster.leader(cluster.client())
    return cluster


def changed(store: Store, **change: Any) -> Membership:
    membership = store.change_members(timeout=40, **change)
    assert not membership.joining
    return membership


def told_by(client: Store) -> tuple[str, ...]:
    """The members that it hears of; none, while nobody answers."""
    try:
        return client.members().members
    except StoreUnavailable:
        return ()


def token_of(process: CandidateProcess) -> int:
    """Of the term that it leads now."""
    process.order("check")
    said = process.wait("checked")
    assert said["leader"], f"{process.name} does not lead"
    return int(said["token"])


def is_deposed(process: CandidateProcess) -> bool:
    """Whether it has said that it no longer leads."""
    return any(said["event"] == "termended" for said in process.said)


class TestChanges:
    @long_terms
    def test_three_become_five_and_three_again_under_one_leader(self, three: Cluster) -> None:
        client = three.client()
        leader = three.leader(client)
        token = token_of(leader)
        fourth, fifth = three.join(), three.join()
        assert set(changed(client, add=fourth).members) == {*three.first, fourth}
        assert set(changed(client, add=fifth).members) == {*three.first, fourth, fifth}
        others = [address for address in three.first if address != leader.name]
        membership = changed(client, remove=others)
        assert set(membership.members) == {leader.name, fourth, fifth}
        assert set(membership.retired) == set(others)
        assert membership.epoch == 3
        assert token_of(leader) == token, "the same term, over three changes"
        assert not is_deposed(leader)
        # The new ones vote and lead: of the present majority both are needed now.
        leader.kill()
        heir = three.leader(three.client(fourth, fifth), after=leader)
        assert heir.name in {fourth, fifth}
        assert token_of(heir) > token

    def test_a_leader_that_is_removed_gives_way_and_another_leads_on(self, three: Cluster) -> None:
        client = three.client()
        leader = three.leader(client)
        token = token_of(leader)
        membership = changed(client, remove=leader.name)
        assert leader.name not in membership.members
        ended = leader.wait("termended")
        assert "removed" in ended["reason"]
        released = leader.wait("released")
        heir = three.leader(three.client(*membership.members), after=leader)
        elected = latest(heir, "elected")
        assert elected["token"] > token
        # It released what it held, so nobody had to wait for that to lapse.
        assert elected["at"] - released["at"] < 0.8
        wait_until(lambda: leader.process.poll() is not None, 20, "its candidate to be told")

    @pytest.mark.long
    @long_terms
    def test_a_dead_member_is_removed_also_by_those_who_never_heard_of_it(
        self, cluster: Cluster
    ) -> None:
        a, b, dead = cluster.first
        cluster.begin(a, b)
        leader = cluster.leader(cluster.client())
        token = token_of(leader)
        assert changed(cluster.client(a), remove=dead).members == tuple(sorted([a, b]))
        assert token_of(leader) == token

    # The new one is needed for each renewal, as soon as it is one of them.
    @pytest.mark.long
    @pytest.mark.parametrize("ttl", [4])
    def test_a_member_is_added_while_another_is_cut_off(self, three: Cluster) -> None:
        # Before that the others may not have heard that each has a directory.
        for process in three.processes.values():
            latest(process, "ready")
        client = three.client()
        leader = three.leader(client)
        token = token_of(leader)
        away = next(address for address in three.first if address != leader.name)
        three.processes[away].sleep()
        new = three.join()
        assert new in changed(client, add=new).members
        assert token_of(leader) == token
        three.processes[away].signal(signal.SIGCONT)
        asked = three.client(away)
        wait_until(lambda: new in asked.members().members, 20, "who was away to hear of it")

    @pytest.mark.long
    def test_a_member_that_was_away_while_all_others_were_replaced_comes_back(
        self, three: Cluster
    ) -> None:
        away, *others = three.first
        new = [three.join(), three.join()]
        client = three.client(*others, *new)
        # By then each has heard from each that it stores its state.
        changed(client, add=new[0])
        three.processes[away].kill()
        for old, each in zip(others, new, strict=True):
            if each not in client.members().members:
                changed(client, add=each)
            changed(client, remove=old)
            three.processes[old].kill()
        three.start(away)
        members = client.members().members
        wait_until(
            lambda: told_by(three.client(away)) == members, 20, "who was away to hear of the others"
        )

    def test_a_node_that_may_lag_behind_does_not_say_that_a_change_is_done(
        self, three: Cluster
    ) -> None:
        fourth = three.join()
        changed(three.client(), add=fourth)
        # It goes by the list that it was given, which never named the fourth.
        waiting = three.join()
        asked = three.client(waiting)
        assert fourth not in changed(asked, remove=fourth).members
        assert fourth in three.client().members().retired

    @pytest.mark.long
    def test_two_changes_at_a_time_come_about_one_after_the_other(self, three: Cluster) -> None:
        new = [three.join(), three.join()]
        clients = [three.client(three.first[0]), three.client(three.first[1])]
        with ThreadPoolExecutor() as pool:
            for each in [
                pool.submit(changed, client, add=address)
                for client, address in zip(clients, new, strict=True)
            ]:
                each.result()
        told = clients[0].members()
        assert set(told.members) == {*three.first, *new}
        assert told.epoch == 2

    @pytest.mark.long
    def test_the_list_outlives_a_restart_of_all_with_the_old_list(self, three: Cluster) -> None:
        client = three.client()
        token = token_of(three.leader(client))
        new = three.join()
        removed = three.first[2]
        changed(client, add=new, remove=removed)
        members = [*three.first[:2], new]
        for process in three.processes.values():
            if process.process.poll() is None:
                process.kill()
        for address in three.first:
            three.start(address)
        three.start(new, join=1)
        leader = three.leader(three.client(*members))
        assert token_of(leader) > token
        assert leader.name in members
        assert all(set(three.client(each).members().members) == set(members) for each in members)

    @pytest.mark.long
    def test_a_removed_member_never_votes_again_whatever_it_remembers(self, three: Cluster) -> None:
        a, b, removed = three.first
        # It is away meanwhile, so its directory has the old list, as its command line has.
        three.processes[removed].kill()
        changed(three.client(a, b), remove=removed)
        three.processes[b].kill()
        three.start(removed)
        watched = three.client(a, removed)
        asked = three.client(removed)
        wait_until(lambda: is_removed(asked, removed), 20, "it to be told of it")
        # With its vote a would be a majority of the old list; without b nobody leads.
        wait_until(lambda: leads_nowhere(watched), 20, "the leader's end")
        with pytest.raises(TimeoutError):
            Follower(watched, KEY).wait_for_leader(3)
        three.start(b)
        assert three.leader(three.client(a, b)).name in {a, b}


def latest(process: CandidateProcess, event: str) -> dict[str, Any]:
    """What it said of this last; waited for, if it has not yet."""
    earlier = [said for said in process.said if said["event"] == event]
    return earlier[-1] if earlier else process.wait(event)


def is_removed(client: Store, address: str) -> bool:
    try:
        return address in client.members().retired
    except StoreUnavailable:
        return False


def leads_nowhere(client: Store) -> bool:
    try:
        return Follower(client, KEY).leader() is None
    except LeadershipError:
        return True


class TestRefusals:
    def test_where_a_member_has_no_state_dir(self, cluster: Cluster) -> None:
        a, b, without = cluster.first
        cluster.begin(a, b)
        cluster.begin(without, state_dir=None)
        cluster.leader(cluster.client())
        new = cluster.join()
        for asked in (a, without):
            with pytest.raises(NotSupported, match=r"state_dir.*new cluster name"):
                cluster.client(asked).change_members(add=new, timeout=20)
        assert set(cluster.client().members().members) == set(cluster.first)

    @pytest.mark.long
    def test_what_would_leave_no_majority_or_nobody(self, three: Cluster) -> None:
        client = three.client()
        leader = three.leader(client)
        dead, other = (address for address in three.first if address != leader.name)
        three.processes[dead].kill()
        with pytest.raises(ConfigurationError, match="no majority answers"):
            client.change_members(remove=other, timeout=20)
        with pytest.raises(ConfigurationError, match="names nobody"):
            client.change_members(remove=three.first, timeout=20)
        assert client.members().epoch == 0

    @pytest.mark.long
    def test_a_node_that_does_not_wait_to_be_added(self, three: Cluster) -> None:
        client = three.client()
        wrong = f"127.0.0.1:{free_port()}"
        with pytest.raises(TimeoutError, match=r"does not answer.*join=1.*repeat"):
            client.change_members(add=wrong, timeout=1)
        with new_store("peers", [wrong], listen=wrong, **three.common) as store:
            store.core.call(backend_of(store).driver)
            with pytest.raises(NotSupported, match="has no state_dir"):
                client.change_members(add=wrong, timeout=20)
        directory = str(three._directory / "other")
        options = {**three.common, "state_dir": directory}
        with new_store("peers", [wrong], listen=wrong, **options) as store:
            store.core.call(backend_of(store).driver)
            with pytest.raises(ConfigurationError, match="runs as a member of"):
                client.change_members(add=wrong, timeout=20)
        options["ttl_ceiling"] = 2
        with new_store("peers", three.first, listen=wrong, join=1, **options) as store:
            store.core.call(backend_of(store).driver)
            with pytest.raises(ConfigurationError, match="another ttl_ceiling"):
                client.change_members(add=wrong, timeout=20)
        assert client.members().epoch == 0

    def test_an_address_that_was_removed_never_comes_back(self, three: Cluster) -> None:
        client = three.client()
        removed = three.first[2]
        changed(client, remove=removed)
        with pytest.raises(ConfigurationError, match="its id is retired"):
            client.change_members(add=removed, timeout=20)
        # Said again it is done already.
        assert changed(client, remove=removed).epoch == 1

    def test_who_has_not_the_secret_changes_nothing(self, three: Cluster) -> None:
        for secret in (None, "another secret of sixteen"):
            client = three.client(secret=secret)
            with pytest.raises(AccessDenied, match="secret"):
                client.change_members(remove=three.first[2], timeout=20)
            with pytest.raises(AccessDenied, match="secret"):
                client.members()
        assert three.client().members().epoch == 0

    def test_a_recorded_change_has_no_effect_when_it_is_sent_again(self, three: Cluster) -> None:
        client = three.client(three.first[0])
        observer = backend_of(client)._observer
        assert observer is not None
        sent: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        call = observer._client.call

        async def recorded(*arguments: Any, **more: Any) -> Answer:
            sent.append((arguments, more))
            return await call(*arguments, **more)

        observer._client.call = recorded  # type: ignore[method-assign]
        changed(client, remove=three.first[2])
        arguments, more = sent[-1]
        _, address, path, body = arguments
        asked = json.loads(body)
        assert (path, asked["remove"]) == (MEMBERS, [three.first[2]])

        async def send_again() -> bytes:
            return (await call(*arguments, **more)).body

        # Each nonce serves for one change: also of one that is sealed anew.
        assert json.loads(client.core.call(send_again))["outcome"] == "stale"
        told = client.core.call(observer._operator.ask, address, question(asked), 5.0)
        assert told.outcome == "stale"


def question(asked: dict[str, Any]) -> MembersQuestion:
    return msgspec.convert(asked, MembersQuestion)


class TestFaces:
    def test_the_command_lists_adds_and_removes(self, three: Cluster) -> None:
        url = three.url(listen=three.first[0]).replace(f"secret={SECRET.replace(' ', '%20')}&", "")
        new = three.join()

        def run(*arguments: str) -> tuple[int, set[str]]:
            ended = leadership("peers", *arguments, "--store", url, LEADERSHIP_SECRET=SECRET)
            assert ended.returncode or not ended.stderr
            return ended.returncode, set((ended.stdout or ended.stderr).splitlines())

        assert run("list") == (0, {*three.first})
        assert run("add", new) == (0, {*three.first, new})
        assert run("remove", three.first[1], "--timeout", "40") == (
            0,
            {*three.first, new} - {three.first[1]},
        )
        status, told = run("add", three.first[1])
        assert status == 2
        assert "retired" in told.pop()
        status, told = run("add", f"127.0.0.1:{free_port()}", "--timeout", "0.5")
        assert status == 1
        assert "repeat the same change" in told.pop()
        ended = leadership("peers", "list", "--json", "--store", url, LEADERSHIP_SECRET=SECRET)
        assert json.loads(ended.stdout)["retired"] == [three.first[1]]

    @on_a_loop
    async def test_the_same_for_asyncio(self, three: Cluster) -> None:
        async with aio.new_store("peers", three.first, observe=True, **three.common) as store:
            membership = await store.change_members(remove=three.first[0], timeout=40)
            assert membership.members == tuple(sorted(three.first[1:]))
            assert await store.members() == membership

    @pytest.mark.parametrize("url", ["memory://members", "etcd://127.0.0.1:1"])
    def test_other_stores_have_no_members(self, url: str) -> None:
        with new_store(url) as store:
            with pytest.raises(NotSupported, match="members"):
                store.members()
            with pytest.raises(NotSupported, match="members"):
                store.change_members(add="h:1")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"listen": "c:3", "join": 1}, "needs state_dir"),
            ({"listen": "c:3", "join": 1, "state_dir": "d", "bootstrap": 1}, "begins a new one"),
            ({"listen": "c:3"}, "needs join=1"),
        ],
    )
    def test_a_node_that_joins_is_checked_at_construction(
        self, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            new_store("peers", ["a:1", "b:2"], **options)
