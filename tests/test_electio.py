"""electio's surface, byte for byte as its Go nodes write and read it."""

from __future__ import annotations

import json

import pytest

from leadership.backends._electio import ACTIVE_SECONDS, Ping, Surface, node_id, read_reply

A, B, C = (f"127.0.0.1:{port}" for port in (18001, 18002, 18003))
IDS = [node_id("c1", address) for address in (A, B, C)]


class World:
    """A surface whose clock and leader the test sets."""

    def __init__(self, changes: bool = False) -> None:
        self.now = 1_000_000.9
        self.leader: str | None = None
        self.surface = Surface("c1", A, (A, B, C), lambda: self.leader, lambda: self.now, changes)

    def get(self, path: str, query: str = "") -> dict[str, object]:
        reply = self.surface.answer("GET", path, query)
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
        answer = json.loads(reply.body)
        assert isinstance(answer, dict)
        return answer

    def member(self, id: str) -> dict[str, object]:
        members = self.get("/")["Members"]
        assert isinstance(members, dict)
        member = members[id]
        assert isinstance(member, dict)
        return member


def test_the_ids_are_those_that_were_seen() -> None:
    assert IDS == [
        "8e36cc36f59a7248c35f77b384c4b991",
        "e50607151cbb03f682301f06c73f3e0c",
        "0a71068a079af04d6db42110938adee1",
    ]


def test_the_json_is_indented_in_struct_order_with_members_sorted() -> None:
    world = World()
    world.surface.members = {IDS[0]: world.surface.members[IDS[0]]}
    assert world.surface.answer("GET", "/", "").body.decode() == (
        "{\n"
        '    "Code": 0,\n'
        '    "Msg": "ok",\n'
        f'    "WorkerId": "{IDS[0]}",\n'
        '    "MasterId": "",\n'
        '    "Members": {\n'
        f'        "{IDS[0]}": {{\n'
        f'            "Id": "{IDS[0]}",\n'
        '            "ClusterId": "c1",\n'
        f'            "ServiceAddr": "{A}",\n'
        '            "MasterId": "",\n'
        '            "LastRegistered": 1000000,\n'
        '            "Active": true\n'
        "        }\n"
        "    }\n"
        "}"
    )
    assert list(World().get("/")["Members"]) == sorted(IDS)  # type: ignore[call-overload]


def test_what_go_escapes_is_escaped() -> None:
    body = World().surface.answer("GET", "/ping", "fromId=%3Ca%26b%3E").body
    assert rb"fromId:\u003ca\u0026b\u003e not exist" in body


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        ("/ping", "", "fromId must no be empty"),
        ("/ping", "fromId=x", "fromId:x not exist"),
        ("/follow", "masterId=x", "fromId must no be empty"),
        ("/follow", "fromId=x", "masterId must no be empty"),
        ("/follow", "fromId=x&masterId=y", "will follow but masterId:y not exist"),
        ("/add", "", "nodes must not be empty"),
        ("/remove", "", "nodeId must no be empty"),
        ("/erasemaster", "", "node must no be empty"),
    ],
)
def test_an_error_is_status_200_with_code_1(path: str, query: str, message: str) -> None:
    answer = World(changes=True).get(path, query)
    assert (answer["Code"], answer["Msg"]) == (1, message)
    assert answer["WorkerId"] == IDS[0]


@pytest.mark.parametrize("path", ["/", "/ping", "/other"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT"])
def test_other_methods_are_not_found(path: str, method: str) -> None:
    reply = World().surface.answer(method, path, "")
    assert (reply.status, reply.body) == (404, b"404 page not found")
    assert reply.headers["Content-Type"] == "text/plain"


def test_a_trailing_slash_is_sent_elsewhere() -> None:
    reply = World().surface.answer("GET", "/ping/", "fromId=x")
    assert (reply.status, reply.headers["Location"]) == (301, "/ping?fromId=x")


def test_a_ping_is_remembered_with_its_master_until_it_is_too_old() -> None:
    world = World()
    assert world.member(IDS[1])["Active"] is False
    world.get("/ping", f"fromId={IDS[1]}&masterId={IDS[2]}")
    assert world.member(IDS[1]) == {
        "Id": IDS[1],
        "ClusterId": "c1",
        "ServiceAddr": B,
        "MasterId": IDS[2],
        "LastRegistered": 1000000,
        "Active": True,
    }
    world.now += ACTIVE_SECONDS
    assert world.member(IDS[1])["Active"] is True
    world.now += 1
    assert world.member(IDS[1])["Active"] is False


def test_our_leader_is_the_master_whatever_is_demanded() -> None:
    world = World()
    assert world.get("/follow", f"fromId={IDS[1]}&masterId={IDS[1]}")["MasterId"] == ""
    world.leader = C
    assert world.get("/follow", f"fromId={IDS[1]}&masterId={IDS[1]}")["MasterId"] == IDS[2]
    assert world.member(IDS[0])["MasterId"] == IDS[2]
    assert world.surface.ping_path() == f"/ping?fromId={IDS[0]}&masterId={IDS[2]}"
    assert world.surface.follow_path() == f"/follow?fromId={IDS[0]}&masterId={IDS[0]}"


@pytest.mark.parametrize("path", ["/add", "/remove", "/erasemaster"])
def test_the_routes_that_change_are_off_unless_switched_on(path: str) -> None:
    query = f"nodes={B}&nodeId={IDS[1]}&masterId=x"
    assert World().surface.answer("GET", path, query).status == 404
    assert World(changes=True).get(path, query)["Code"] == 0


def test_members_are_added_and_removed_for_show_only() -> None:
    world = World(changes=True)
    added = "127.0.0.1:18009"
    world.get("/add", f"nodes={added},")
    assert world.member(node_id("c1", added))["ServiceAddr"] == added
    world.get("/remove", f"nodeId={IDS[1]}")
    world.get("/remove", f"nodeId={IDS[0]}")
    assert set(world.surface.members) == {IDS[0], IDS[2], node_id("c1", added)}


def test_nobody_can_add_without_end() -> None:
    world = World(changes=True)
    for number in range(50):
        world.get("/add", "nodes=" + ",".join(f"h:{number * 100 + n}" for n in range(100)))
    assert len(world.surface.members) <= 100


@pytest.mark.parametrize(
    ("body", "ping"),
    [
        (b'{"Code":0,"WorkerId":"w","MasterId":"m","Members":{}}', Ping("w", "m")),
        (b'{"code":0,"workerid":"w"}', Ping("w", "")),
        (b"{}", Ping("", "")),
        (b'{"Code":1,"Msg":"no"}', None),
        (b"", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b'{"WorkerId":7}', None),
        (b"\xff", None),
    ],
)
def test_a_reply_is_read_as_the_go_nodes_read_it(body: bytes, ping: Ping | None) -> None:
    assert read_reply(body) == ping
