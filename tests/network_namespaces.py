"""Machines of a test's own, as network namespaces on one bridge; root on Linux only.

    with machines(3) as network:
        network.run(0, ["python", ...])     # a process on the first machine
        network.cut(0, 1)                   # 1 hears nothing of 0 any more
        network.heal()

A cut loses packets without a word, as a broken switch does: the sender's
table of neighbours is given a wrong address. So it can be one-way.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

_RANGE = "10.213"
_NOWHERE = "02:00:00:00:00:01"
_serial = itertools.count()


class Network:
    """Machines that reach each other.

    Args:
        size: how many there are.
        reached: from this machine too, which no cut concerns.
    """

    def __init__(self, size: int, *, reached: bool = False) -> None:
        # Interface names have at most 15 characters, and other runs have theirs.
        self._name = f"ls{os.getpid() % 100_000}x{next(_serial)}"
        # Only what this machine reaches has to differ from what other runs have.
        self._range = _unused_range() if reached else f"{_RANGE}.0"
        self._reached = reached
        self.hosts = [f"{self._range}.{number + 1}" for number in range(size)]
        self._hardware: list[str] = []
        self._cut: set[tuple[int, int]] = set()

    def start(self) -> None:
        """Make them."""
        _ip("link", "add", f"{self._name}b", "type", "bridge")
        _ip("link", "set", f"{self._name}b", "up")
        if self._reached:
            _ip("addr", "add", f"{self._range}.254/24", "dev", f"{self._name}b")
        for number, host in enumerate(self.hosts):
            space, outer = self.space(number), f"{self._name}v{number}"
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outer, "master", f"{self._name}b", "up")
            _ip("-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "up")
            shown = _ip("-n", space, "-o", "link", "show", "eth0")
            self._hardware.append(shown.split("link/ether ")[1].split()[0])
        # Known from the start, so that nobody has to ask before or after a cut.
        self.heal(everything=True)

    def space(self, number: int) -> str:
        """The name of a machine's namespace."""
        return f"{self._name}n{number}"

    def command(self, number: int, *arguments: str) -> list[str]:
        """That, as run on a machine."""
        return ["ip", "netns", "exec", self.space(number), *arguments]

    def cut(self, sender: int, receiver: int) -> None:
        """What one machine sends to the other is lost from now on; not what comes back."""
        self._cut.add((sender, receiver))
        self._point(sender, receiver, _NOWHERE)

    def isolate(self, number: int) -> None:
        """The machine and the others hear nothing of each other any more."""
        for other in range(len(self.hosts)):
            if other != number:
                self.cut(number, other)
                self.cut(other, number)

    def heal(self, everything: bool = False) -> None:
        """Everybody hears everybody again."""
        pairs = itertools.permutations(range(len(self.hosts)), 2) if everything else self._cut
        for sender, receiver in list(pairs):
            self._point(sender, receiver, self._hardware[receiver])
        self._cut.clear()

    def close(self) -> None:
        """Remove all of it."""
        for number in range(len(self.hosts)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self.space(number))
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", f"{self._name}b")

    def _point(self, sender: int, receiver: int, hardware: str) -> None:
        where = ["neigh", "replace", self.hosts[receiver], "lladdr", hardware]
        _ip("-n", self.space(sender), *where, "dev", "eth0", "nud", "permanent")


def _unused_range() -> str:
    """The first three numbers of addresses that nobody on this machine has."""
    taken = _ip("-o", "-4", "addr")
    # From another start for each process: two may look at the same moment.
    numbers = (1 + (os.getpid() + step) % 250 for step in range(250))
    return next(found for n in numbers if f" {(found := f'{_RANGE}.{n}')}." not in taken)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def can_be_made() -> bool:
    """Whether this machine lets us."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    network = Network(2)
    try:
        network.start()
    except subprocess.CalledProcessError:
        return False
    finally:
        network.close()
    return True


@contextlib.contextmanager
def machines(size: int) -> Iterator[Network]:
    """So many machines; nothing is left of them afterwards."""
    network = Network(size)
    try:
        network.start()
        yield network
    finally:
        network.close()
