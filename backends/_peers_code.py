"""The code that seals a request between nodes. The guardian makes it too, with the standard
library alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

PREFIX = "Leadership-"
"""Of the headers."""


def digest(body: bytes) -> str:
    """What stands for the content in the head."""
    return hashlib.sha256(body).hexdigest()


def code(secret: bytes, fields: Mapping[str, str], path: str) -> str:
    """The code over the head's fields, in their order."""
    # Header values hold no line break, so no two sets of fields read alike.
    parts = [path, *(f"{name}={value}" for name, value in fields.items())]
    return hmac.new(secret, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
