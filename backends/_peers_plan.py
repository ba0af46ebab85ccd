"""What the guardian of a leading node needs to tell the others of its death."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..backend import ReleasePlan
from ._peers_post import MESSAGES, Post
from ._peers_release import release
from ._peers_seal import Seals
from ._peers_settings import Settings
from ._quorum_messages import Release

_encode = msgspec.json.Encoder().encode


def plan_of(
    releases: Iterable[Release], seals: Seals, post: Post, settings: Settings
) -> ReleasePlan:
    """The plan for one term.

    Args:
        releases: one for each other member.
    """
    members = [
        {
            "address": each.header.receiver,
            "incarnation": str(post.incarnation(each.header.receiver)),
            "body": _encode([msgspec.structs.replace(each, ticket=seals.ticket(each.ticket))]),
        }
        for each in releases
    ]
    arguments = {
        **seals.sender(),
        "path": MESSAGES,
        "members": members,
        "tls": settings.tls_files,
        "timeout": settings.timing.vote_window,
    }
    return ReleasePlan(release, arguments)
