"""The machine that a benchmark ran on, by name: figures of another one are other figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

CLIENTS = ("grpcio", "kazoo", "py-consul", "aiohttp", "cslab-etcd3", "tooz", "etcd3gw")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on.

    Attributes:
        processor: its model.
        cores: that this process may use.
        load: the mean number of busy processes in the minute before, neighbours among them.
        python, kernel: their versions.
        servers, clients: versions by name.
    """

    processor: str
    cores: int
    load: float
    python: str
    kernel: str
    servers: Mapping[str, str]
    clients: Mapping[str, str]

    def __str__(self) -> str:
        servers = ", ".join(f"{name} {number}" for name, number in self.servers.items())
        return (
            f"{self.processor}, {self.cores} cores, load {self.load:.1f} at the start, "
            f"Python {self.python}, {self.kernel}; {servers}"
        )


def this_machine(servers: Mapping[str, str], load: float) -> Machine:
    """This one, with these servers on it, after a minute with that load."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        load=load,
        python=platform.python_version(),
        kernel=f"{platform.system()} {platform.release()}",
        servers=dict(servers),
        clients={name: version(name) for name in CLIENTS},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
