"""Where the server programs are."""

import os
import shutil
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


class ServerMissingError(RuntimeError):
    """A server program is not on this machine."""


def servers_folder() -> Path:
    return Path(os.environ.get("LEADERSHIP_SERVERS") or CHECKOUT / ".servers")


def program(name: str) -> str:
    """The path of a server program: from the private folder, else from PATH."""
    private = servers_folder() / "bin" / name
    found = str(private) if private.exists() else shutil.which(name)
    if found is None:
        raise ServerMissingError(
            f"no {name} in {private.parent} nor on PATH; run tests/servers/install.sh"
        )
    return found
