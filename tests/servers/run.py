"""Run a command beside a server of its own.

``python -m tests.servers.run etcd -- COMMAND ARGUMENT...``

``{url}`` in an argument becomes the server's address, which LEADERSHIP_STORE holds too.
The server goes with the command, whose exit status becomes ours.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from tests.servers.consul import ConsulServer
from tests.servers.consul_client import ExternalConsul
from tests.servers.etcd import EtcdServer
from tests.servers.etcd_client import ExternalEtcd
from tests.servers.zookeeper import zookeeper_url


@contextlib.contextmanager
def etcd_url(fast: bool) -> Iterator[str]:
    external = os.environ.get("LEADERSHIP_TEST_ETCD")
    if external:
        yield ExternalEtcd(external).url
    else:
        with EtcdServer(fast=fast) as server:
            yield server.url


@contextlib.contextmanager
def consul_url(fast: bool) -> Iterator[str]:
    external = os.environ.get("LEADERSHIP_TEST_CONSUL")
    if external:
        yield ExternalConsul(external).url
    else:
        with ConsulServer(fast=fast) as server:
            yield server.url


SERVERS = {"etcd": etcd_url, "consul": consul_url, "zookeeper": zookeeper_url}


def run(command: Sequence[str], url: str) -> int:
    """Run ``command`` and return its status as a shell would tell it."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        # A terminal's Ctrl-C has reached the child by itself: twice would be another command.
        elif not (number == signal.SIGINT and sys.stdin.isatty()):
            child.send_signal(number)

    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, forward) for number in forwarded}
    try:
        child = subprocess.Popen(
            [part.replace("{url}", url) for part in command],
            env={**os.environ, "LEADERSHIP_STORE": url},
        )
        for number in early:
            child.send_signal(number)
        status = child.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers.run",
        description="Run a command beside a server of its own.",
        usage="%(prog)s [--default-timing] SERVER -- COMMAND...",
    )
    parser.add_argument("server", choices=sorted(SERVERS))
    parser.add_argument("command", nargs="+", help="{url} in it becomes the server's address")
    parser.add_argument(
        "--default-timing",
        action="store_true",
        help="the server's own timing, as in production, instead of the tests' faster one",
    )
    options = parser.parse_args(arguments)
    # A SIGTERM while the server starts must still take the server down in good order.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with SERVERS[options.server](not options.default_timing) as url:
        return run(options.command, url)


if __name__ == "__main__":
    sys.exit(main())
