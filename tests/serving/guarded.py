"""A server with TLS and keys, and callers of all sorts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bon_server.serving.auth.keys import Quota, add_key
from tests.serving.certificates import Authority, Files
from tests.serving.running import Refused, refusal
from tests.waiting import SOON_S

ANYWHERE = "0.0.0.0"
"""All addresses of this machine, which is more than loopback."""
RIGHTS = ("generate", "score", "feedback", "admin")


@dataclass(frozen=True)
class Guard:
    """Files in a folder, with which a server is started."""

    folder: Path
    authority: Authority
    server: Files
    keys: Path

    @classmethod
    def of(cls, folder: Path) -> Guard:
        """Makes them; there are no keys yet."""
        authority = Authority(folder)
        return cls(folder, authority, authority.signs("server"), folder / "keys.toml")

    def key(self, name: str = "anna", rights: tuple[str, ...] = RIGHTS, **quota: int) -> str:
        """Adds a key."""
        return add_key(self.keys, name, rights, Quota(**quota))

    @property
    def settings(self) -> dict[str, Any]:
        """Of a server with both."""
        return {
            "security.tls_cert": str(self.server.cert),
            "security.tls_key": str(self.server.key),
            "security.api_keys": str(self.keys),
        }

    @asynccontextmanager
    async def channel(self, address: str, own: Files | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """A connection over TLS, with a client's certificate if one is given; never one that was made before."""
        credentials = grpc.ssl_channel_credentials(
            self.authority.file.read_bytes(),
            own.key.read_bytes() if own else None,
            own.cert.read_bytes() if own else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            yield channel


def shows(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    return (("authorization", f"Bearer {key}"),)


async def refused(
    channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...] = (), data: bytes = b""
) -> Refused:
    """How any method, known or not, refuses. Asked as if it were unary, whose message is no step of its own: a stream's
    may find the call refused already, and then gRPC's client says INTERNAL."""
    call: Any = channel.unary_unary(method)
    return await refusal(call(data, metadata=metadata, timeout=SOON_S))


def audited(records: list[Any]) -> list[Mapping[str, str]]:
    """What the audit has of each refusal."""
    names = ("principal", "method", "code", "reason")
    return [{name: getattr(each, name) for name in names} for each in records if each.name == "bon.audit"]
