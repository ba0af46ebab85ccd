"""What the servers of the tests have in common, whatever they serve."""

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from tests.servers.process import ServerProcess

READY_DEADLINE = 30.0
"""Seconds: a busy machine starts three of them at once."""


class Started(ABC):
    """Runs for the time of a ``with`` block; what fails to start leaves nothing behind."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class Server(Started):
    """One process; its ports and its folder stay until :meth:`stop`."""

    folder: Path
    _process: ServerProcess

    @abstractmethod
    def launch(self) -> None:
        """:meth:`start` without the wait: the members of a cluster wait for each other."""

    @abstractmethod
    def wait_ready(self) -> None: ...

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._process.log

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    @property
    def is_paused(self) -> bool:
        return self._process.is_paused

    def start(self) -> None:
        """Start on the data there is, if any, and return when the server serves."""
        self.launch()
        self.wait_ready()

    def restart(self) -> None:
        """End in good order and start again, on the same data and ports."""
        self.terminate()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: the machine has the connections still open, the server does not answer."""
        self._process.pause()

    def resume(self) -> None:
        """SIGCONT; returns when the server answers again."""
        self._process.resume()
        self.wait_ready()

    def kill(self) -> None:
        """SIGKILL, and wait for the end. The data stay."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM, and wait for the end. The data stay."""
        self._process.terminate()

    def stop(self) -> None:
        """End for good: the data go too. Stopping twice is fine."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Member(Protocol):
    @property
    def is_running(self) -> bool: ...
    def launch(self) -> None: ...
    def wait_ready(self) -> None: ...
    def stop(self) -> None: ...


M = TypeVar("M", bound=_Member)


class Cluster(Started, Generic[M]):
    """Several servers. Kill, pause, restart them through :attr:`members`."""

    members: list[M]

    def start(self) -> None:
        """Start every member that is down; return when all serve."""
        for member in self.members:
            if not member.is_running:
                member.launch()
        for member in self.members:
            member.wait_ready()

    def stop(self) -> None:
        for member in self.members:
            member.stop()
