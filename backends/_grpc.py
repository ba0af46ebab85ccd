"""gRPC and etcd's generated stubs, imported in the one way that survives a fork."""

from __future__ import annotations

import os
from typing import Any

# gRPC's own fork handlers, on by default, crash children that are forked while
# its asynchronous side is at work (one in six, by `tests/test_etcd_endings.py`
# without this line). Off, the child lives. It is read when gRPC starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import grpc
from etcd3 import etcdrpc

# Published, but not in the types of every release.
END_OF_STREAM: Any = vars(grpc.aio)["EOF"]

__all__ = ["END_OF_STREAM", "etcdrpc", "grpc"]
