"""A node that speaks electio's protocol alone, as its Go program does: a process of its own.

    python -m tests.electio_node ADDRESS MEMBERS

Each second it pings all members, with its own id and its master's; once more
than half of them are there it follows, or elects, and demands that the others
follow. Faithful to what the Go nodes do, with their faults: it votes for itself,
asks for a majority at the start alone, and whoever pings it is believed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen

from leadership.backends._electio import node_id
from leadership.clock import SystemClock

_CLOCK = SystemClock()
_TIMEOUT_SECONDS = 2
_CLUSTER = "c1"


@dataclass(slots=True)
class _Member:
    address: str
    master: str = ""
    last_seen: int = 0
    active: bool = False


class ElectioNode:
    """Its state, and what it does by itself."""

    def __init__(self, address: str, members: list[str]) -> None:
        self.id = node_id(_CLUSTER, address)
        self.master = ""
        self.members = {node_id(_CLUSTER, each): _Member(each) for each in members}
        self.demanded: list[str] = []

    def answer(self, path: str, query: Mapping[str, list[str]]) -> dict[str, Any] | None:
        """The answer to a request; None for an unknown path."""
        asked = {name: values[0] for name, values in query.items()}
        refusal = ""
        if path == "/ping":
            member = self.members.get(asked.get("fromId", ""))
            if member is None:
                refusal = f"fromId:{asked.get('fromId', '')} not exist"
            else:
                self._saw(member, asked.get("masterId", ""))
        elif path == "/follow":
            refusal = self._demanded(asked)
        elif path == "/erasemaster":
            self.master = ""
        elif path != "/":
            return None
        return {
            "Code": 1 if refusal else 0,
            "Msg": refusal or "ok",
            "WorkerId": self.id,
            "MasterId": self.master,
            "Members": {
                name: {
                    "Id": name,
                    "ClusterId": _CLUSTER,
                    "ServiceAddr": member.address,
                    "MasterId": member.master,
                    "LastRegistered": member.last_seen,
                    "Active": member.active,
                }
                for name, member in sorted(self.members.items())
            },
        }

    def _demanded(self, asked: Mapping[str, str]) -> str:
        master = asked.get("masterId", "")
        if not master:
            return "masterId must no be empty"
        if self.master == master:
            return ""
        if master not in self.members:
            return f"will follow but masterId:{master} not exist"
        reply = self._ping(master)
        if reply is None:
            return "will follow(%s) but ping error"
        # Not whom it was told to follow, but whom that one follows.
        if reply.get("MasterId") in self.members:
            self.master = reply["MasterId"]
        return ""

    def _saw(self, member: _Member, master: str) -> None:
        member.master, member.last_seen, member.active = master, int(_CLOCK.wall()), True

    def _get(self, id: str, path: str, master: str) -> dict[str, Any] | None:
        query = urlencode({"fromId": self.id, "masterId": master})
        try:
            with urlopen(f"http://{self.members[id].address}{path}?{query}", timeout=5) as answer:
                reply = json.loads(answer.read())
        except (OSError, ValueError):
            return None
        return dict(reply) if reply.get("Code") == 0 else None

    def _ping(self, id: str) -> dict[str, Any] | None:
        reply = self._get(id, "/ping", self.master)
        if reply is not None:
            self._saw(self.members[id], reply.get("MasterId", ""))
        return reply

    # --- by itself ---

    def ping_all(self) -> None:
        """One round, and who was silent for too long is inactive."""
        for name, member in self.members.items():
            if name == self.id:
                self._saw(member, self.master)
            else:
                self._ping(name)
            member.active = int(_CLOCK.wall()) - member.last_seen <= _TIMEOUT_SECONDS
        master = self.members.get(self.master)
        if master is not None and not master.active:
            self.elect()

    def elect(self) -> None:
        """Vote for itself, as each Go node does, and demand the same of all."""
        self.master = self.id
        self.perform_master()

    def perform_master(self) -> None:
        """As master: who names another is told to follow."""
        if self.master == self.id:
            for name, member in self.members.items():
                if name != self.id and member.master != self.id:
                    self._get(name, "/follow", self.id)

    def run(self, ended: threading.Event) -> None:
        """From the start to the end."""
        settled = False
        while not ended.wait(1.0 if settled else 0.1):
            self.ping_all()
            if (
                not settled
                and sum(each.active for each in self.members.values()) > len(self.members) // 2
            ):
                settled = True
                # With so many members its search for a master finds none, and it elects.
                self.elect()
            self.perform_master()


def main() -> None:
    address, members = sys.argv[1:3]
    node = ElectioNode(address, members.split(","))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            reply = node.answer(parts.path, parse_qs(parts.query))
            body = b"404 page not found" if reply is None else json.dumps(reply, indent=4).encode()
            self.send_response(404 if reply is None else 200)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            pass

    host, _, port = address.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ended = threading.Event()
    threading.Thread(target=node.run, args=[ended], daemon=True).start()
    sys.stdin.read()
    ended.set()
    server.shutdown()


class ElectioProcess:
    """The same, seen from the test."""

    def __init__(self, address: str, members: list[str]) -> None:
        self.address = address
        self.id = node_id(_CLUSTER, address)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.electio_node", address, ",".join(members)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )

    def ask(self, path: str = "/") -> dict[str, Any] | None:
        """What it answers; None while it does not."""
        try:
            with urlopen(f"http://{self.address}{path}", timeout=5) as answer:
                return dict(json.loads(answer.read()))
        except OSError:
            return None

    @property
    def master(self) -> str:
        """Whom it follows."""
        said = self.ask()
        return "" if said is None else str(said["MasterId"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


if __name__ == "__main__":
    main()
