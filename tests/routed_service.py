"""A service of which a load balancer is to ask the leader only; it writes down who was asked when.

``python -m tests.routed_service STORE KEY ID PORT HEALTH-PORT``

A line of JSON on stdout for each request (``at``), and for each term when it began
(``from``) and ended (``to``: from then on another may lead). SIGUSR1: resign.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from leadership import Candidate, Term, new_store
from leadership.health import Health
from leadership.health_server import HealthServer
from leadership.signals import telling_signals

# Ten times the load balancer's interval: it has turned away before another leads.
DRAIN = 1.0


def say(**what: object) -> None:
    # One write, for several threads do.
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, candidate: Candidate, *arguments: Any) -> None:
        self.candidate = candidate
        super().__init__(*arguments)

    def do_GET(self) -> None:
        say(at=self.candidate.core.context.clock.now())
        body = self.candidate.id.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def main() -> None:
    url, key, name, port, health_port = sys.argv[1:]
    with new_store(url) as store:
        candidate = Candidate(store, key, name, ttl=2)
        drained = threading.Event()

        def work(term: Term) -> None:
            say(token=term.token, **{"from": term.elected_at})
            term.wait_lost()
            drained.wait(min(DRAIN, term.remaining()))
            say(token=term.token, to=store.clock.now())

        def told(number: signal.Signals) -> None:
            act = candidate.resign if number == signal.SIGUSR1 else candidate.stop
            threading.Thread(target=act, daemon=True).start()

        server = ThreadingHTTPServer(("127.0.0.1", int(port)), partial(Handler, candidate))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            HealthServer(Health(candidate), f"127.0.0.1:{health_port}"),
            telling_signals(told, signal.SIGUSR1, signal.SIGTERM),
        ):
            candidate.run(work)
        server.shutdown()


if __name__ == "__main__":
    main()
