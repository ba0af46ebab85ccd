"""The browser that the tests look at the live page with."""

from __future__ import annotations

import os
import shutil

from tests.servers.programs import ServerMissingError, program

# Elsewhere than on Debian a browser has another name.
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """The path of a Chromium; LEADERSHIP_TEST_CHROMIUM names another one."""
    given = os.environ.get("LEADERSHIP_TEST_CHROMIUM")
    if given:
        return given
    try:
        return program(_NAMES[0])
    except ServerMissingError:
        for name in _NAMES[1:]:
            found = shutil.which(name)
            if found is not None:
                return found
        raise
