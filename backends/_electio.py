"""electio's HTTP surface: what its Go nodes send to a peer, and what they expect to read.

A legacy node in the member list sees us, and names our leader as its master.
Nothing that arrives here can change a promise or a vote: it is shown, no more.
Everything is as the Go nodes write it, to the byte: ids, codes, casing, JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlencode

ACTIVE_SECONDS = 2
"""A member that was silent for longer counts as inactive, in whole seconds."""

CHANGING = frozenset({"/add", "/remove", "/erasemaster"})
"""The routes that an operator has to switch on."""

_CODE_OK, _CODE_REFUSED = 0, 1
_NOT_FOUND = "404 page not found"


def node_id(cluster: str, address: str) -> str:
    """The id by which electio knows the node at `address`, byte for byte as it is configured."""
    name = f"/mycluster/{cluster}/{address}"
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Member:
    """What we show of one member."""

    address: str
    master: str = ""
    last_seen: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ping:
    """What a legacy node answered."""

    id: str
    master: str


def read_reply(body: bytes) -> Ping | None:
    """A legacy node's answer to a ping; None where it refused, or it is no such answer.

    As lenient as the Go nodes are: keys in any case, unknown ones ignored,
    missing ones empty.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    known = {str(name).lower(): value for name, value in data.items()}
    code, name, master = (known.get(key) for key in ("code", "workerid", "masterid"))
    if code not in (None, _CODE_OK) or isinstance(code, bool):
        return None
    texts = ["" if text is None else text for text in (name, master)]
    if not all(isinstance(text, str) for text in texts):
        return None
    return Ping(*texts)


class Surface:
    """The routes of an electio node, without any input or output of its own.

    Args:
        cluster: the cluster's name, which goes into the ids.
        address: our own, as the others list it.
        members: all addresses, ours among them.
        leader: the address of the leader of the election that is shown, if it is known.
        wall_clock: seconds since 1970.
        changes: whether `/add`, `/remove` and `/erasemaster` are switched on.
    """

    def __init__(
        self,
        cluster: str,
        address: str,
        members: tuple[str, ...],
        leader: Callable[[], str | None],
        wall_clock: Callable[[], float],
        changes: bool = False,
    ) -> None:
        self._cluster = cluster
        self._leader = leader
        self._wall_clock = wall_clock
        self._changes = changes
        self.id = node_id(cluster, address)
        self.members: dict[str, Member] = {}
        self._voters = {address, *members}
        for each in (address, *members):
            self._add(each)

    def _add(self, address: str) -> None:
        self.members[node_id(self._cluster, address)] = Member(address)

    def show_members(self, addresses: Collection[str]) -> None:
        """Other nodes vote now. Those that only electio's routes added stay."""
        for left in self._voters - {*addresses}:
            self.members.pop(node_id(self._cluster, left), None)
        for new in {*addresses} - self._voters:
            self._add(new)
        self._voters = {*addresses}

    @property
    def master(self) -> str:
        """The id of the leader, or "" while none is known."""
        leader = self._leader()
        return "" if leader is None else node_id(self._cluster, leader)

    def saw(self, id: str, master: str) -> None:
        """A member was heard of, and named its master."""
        member = self.members.get(id)
        if member is not None:
            member.master = master
            member.last_seen = int(self._wall_clock())

    # --- what is asked of us ---

    def answer(self, method: str, path: str, query: str) -> Reply:
        """The answer to a request, as the Go server gives it."""
        if method != "GET":
            return _plain(404, _NOT_FOUND)
        if path != "/" and path.endswith("/") and path.rstrip("/") in _ROUTES:
            where = path.rstrip("/") + (f"?{query}" if query else "")
            return _plain(301, "", {"Location": where})
        act = _ROUTES.get(path)
        if act is None or (path in CHANGING and not self._changes):
            return _plain(404, _NOT_FOUND)
        asked: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            asked.setdefault(name, value)
        refusal = act(self, asked)
        return self._json(_CODE_REFUSED if refusal else _CODE_OK, refusal or "ok")

    def _status(self, asked: Mapping[str, str]) -> str | None:
        return None

    def _ping(self, asked: Mapping[str, str]) -> str | None:
        sender = asked.get("fromId", "")
        if not sender:
            return "fromId must no be empty"
        if sender not in self.members:
            return f"fromId:{sender} not exist"
        self.saw(sender, asked.get("masterId", ""))
        return None

    def _follow(self, asked: Mapping[str, str]) -> str | None:
        master = asked.get("masterId", "")
        if not asked.get("fromId", ""):
            return "fromId must no be empty"
        if not master:
            return "masterId must no be empty"
        if master not in self.members:
            return f"will follow but masterId:{master} not exist"
        # Whom we follow is what a majority has promised, whatever is demanded.
        return None

    def _add_nodes(self, asked: Mapping[str, str]) -> str | None:
        nodes = asked.get("nodes", "")
        if not nodes:
            return "nodes must not be empty"
        for each in nodes.split(",")[:MOST_MEMBERS]:
            if len(self.members) < MOST_MEMBERS and _ADDRESS.fullmatch(each):
                self._add(each)
        return None

    def _remove_node(self, asked: Mapping[str, str]) -> str | None:
        node = asked.get("nodeId", "")
        if not node:
            return "nodeId must no be empty"
        # Only the list that is shown: who votes is no matter of this route.
        if node != self.id:
            self.members.pop(node, None)
        return None

    def _erase_master(self, asked: Mapping[str, str]) -> str | None:
        return None if asked.get("masterId", "") else "node must no be empty"

    def _json(self, code: int, message: str) -> Reply:
        now = int(self._wall_clock())
        shown = {
            "Code": code,
            "Msg": message,
            "WorkerId": self.id,
            "MasterId": self.master,
            "Members": {
                name: self._shown(name, self.members[name], now) for name in sorted(self.members)
            },
        }
        text = json.dumps(shown, indent=4, ensure_ascii=False)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return Reply(200, text.encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _shown(self, id: str, member: Member, now: int) -> dict[str, object]:
        ours = id == self.id
        last_seen = now if ours else member.last_seen
        return {
            "Id": id,
            "ClusterId": self._cluster,
            "ServiceAddr": member.address,
            "MasterId": self.master if ours else member.master,
            "LastRegistered": last_seen,
            "Active": now - last_seen <= ACTIVE_SECONDS,
        }

    # --- what we ask of legacy nodes ---

    def ping_path(self) -> str:
        return "/ping?" + urlencode({"fromId": self.id, "masterId": self.master}, quote_via=quote)

    def follow_path(self) -> str:
        """The demand to follow us. Only for a leader, whose own pings already say so:
        a Go node asks the master that it is told of for *its* master."""
        return "/follow?" + urlencode({"fromId": self.id, "masterId": self.id}, quote_via=quote)


MOST_MEMBERS = 100
_ADDRESS = re.compile(r"[\w.:\[\]-]{1,255}")

_ROUTES: dict[str, Callable[[Surface, Mapping[str, str]], str | None]] = {
    "/": Surface._status,
    "/ping": Surface._ping,
    "/follow": Surface._follow,
    "/add": Surface._add_nodes,
    "/remove": Surface._remove_node,
    "/erasemaster": Surface._erase_master,
}


def _plain(status: int, text: str, headers: Mapping[str, str] = {}) -> Reply:
    return Reply(status, text.encode(), {"Content-Type": "text/plain", **headers})
