"""A Consul to talk to, whoever runs it: its address, its API, its program, and what it counted."""

import base64
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from tests.servers.certificates import Certificates
from tests.servers.programs import program


class ConsulError(RuntimeError):
    """Consul refused."""


class ConsulClient:
    """The view of a Consul from outside; several agents: the first is asked."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints = list(endpoints)
        self.certificates: Certificates | None = None
        self.token: str | None = None
        self.session_ttl_min = 1

    @property
    def endpoint(self) -> str:
        """``host:port``, and with several agents ``host:port,host:port,host:port``."""
        return ",".join(self.endpoints)

    @property
    def url(self) -> str:
        return self.url_of(self.endpoint)

    def url_of(self, endpoint: str) -> str:
        """The address of a store that reaches this Consul at ``endpoint``."""
        return f"consul://{endpoint}?session_ttl_min={self.session_ttl_min}"

    def api(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        timeout: float = 5.0,
        **query: str,
    ) -> Any:
        """One request of the HTTP API; the decoded answer, or None where there is nothing."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        scheme = "http" if self.certificates is None else "https"
        address = f"{scheme}://{self.endpoints[0]}/v1/{urllib.parse.quote(path)}"
        if query:
            address += "?" + urllib.parse.urlencode(query)
        request = urllib.request.Request(address, data=data, method=method)
        if token or self.token:
            request.add_header("X-Consul-Token", token or self.token or "")
        try:
            with urllib.request.urlopen(
                request, timeout=timeout, context=self._tls_context()
            ) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise ConsulError(f"{method} {path}: {error.code} {error.read()!r}") from None
        return json.loads(content) if content else None

    def entry(self, key: str) -> dict[str, Any] | None:
        """A key's entry as the server has it, with ``Value`` as bytes."""
        found = self.api("GET", f"kv/{key}", consistent="")
        if found is None:
            return None
        entry: dict[str, Any] = found[0]
        entry["Value"] = base64.b64decode(entry["Value"] or "")
        return entry

    def keys(self, prefix: str = "") -> list[str]:
        return self.api("GET", f"kv/{prefix}", keys="", consistent="") or []

    def put(self, key: str, value: bytes = b"", **query: Any) -> bool:
        return bool(self.api("PUT", f"kv/{key}", value, **query))

    def delete(self, key: str) -> None:
        self.api("DELETE", f"kv/{key}")

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Every session of the datacenter by its id."""
        return {each["ID"]: each for each in self.api("GET", "session/list", consistent="")}

    def holder(self, key: str) -> str | None:
        """The id of the session that holds ``key``."""
        entry = self.entry(key)
        return None if entry is None else entry.get("Session")

    def destroy_session(self, session: str) -> None:
        self.api("PUT", f"session/destroy/{session}")

    def snapshot(self) -> bytes:
        """All data of the datacenter, for `restore`."""
        with urllib.request.urlopen(f"http://{self.endpoints[0]}/v1/snapshot", timeout=10) as reply:
            content: bytes = reply.read()
        return content

    def restore(self, snapshot: bytes) -> None:
        self.api("PUT", "snapshot", snapshot)

    def writes(self) -> int:
        """How many entries the server's log has: the difference of two counts is of writes."""
        return int(self.api("GET", "agent/self")["Stats"]["raft"]["commit_index"])

    def command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return [program("consul"), name, f"-http-addr={self.endpoints[0]}", *rest]

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program ``consul``, for the commands that stay: ``lock``, ``watch``."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: v for name, v in os.environ.items() if not name.startswith("CONSUL_")},
        )

    def _tls_context(self) -> ssl.SSLContext | None:
        if self.certificates is None:
            return None
        context = ssl.create_default_context(cafile=str(self.certificates.authority))
        context.load_cert_chain(self.certificates.client, self.certificates.client_key)
        return context


class ExternalConsul(ConsulClient):
    """A Consul that somebody else runs, at ``host:port``: not ours to kill."""

    def __init__(self, endpoint: str) -> None:
        super().__init__([endpoint])
        self.version: str = self.api("GET", "agent/self")["Config"]["Version"]
