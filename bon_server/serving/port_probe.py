"""Asks a port of ours for its health, below gRPC: whether somebody is behind it, not what the health is.

A gRPC channel would need the authority of our own certificate, and one of its own where callers must show one.
"""

from __future__ import annotations

import asyncio
import ssl
from enum import Enum

_HEADERS, _SETTINGS = 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_PREFIX_BYTES = 9
"""Of a frame: length, kind, flags, stream."""


class Heard(Enum):
    """What comes back from a port."""

    ANSWER = "answer"
    """A call was accepted; or the connection was closed, as it is for want of a certificate or of room."""
    NOTHING = "nothing"
    """In the time given."""
    REFUSED = "refused"
    """Nobody listens."""


async def listen_to(host: str, port: int, tls: bool, within_s: float) -> Heard:
    """Makes one health check."""
    try:
        async with asyncio.timeout(within_s):
            return await _ask(_reachable(host), port, _trusting() if tls else None)
    except TimeoutError:
        return Heard.NOTHING


async def _ask(host: str, port: int, context: ssl.SSLContext | None) -> Heard:
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except ConnectionRefusedError:
        return Heard.REFUSED
    except (ssl.SSLError, ConnectionError):
        return Heard.ANSWER
    try:
        writer.write(_health_check(b"http" if context is None else b"https"))
        await _answer(reader)
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        pass  # closed, which is an answer
    finally:
        writer.transport.abort()
    return Heard.ANSWER


async def _answer(reader: asyncio.StreamReader) -> None:
    """Returns with the first headers: there is one call only."""
    kind = None
    while kind != _HEADERS:
        prefix = await reader.readexactly(_PREFIX_BYTES)
        await reader.readexactly(int.from_bytes(prefix[:3], "big"))
        kind = prefix[3]


def _health_check(scheme: bytes) -> bytes:
    """A connection's opening and one call of `grpc.health.v1.Health/Check` with an empty message."""
    headers = (
        (b":method", b"POST"),
        (b":scheme", scheme),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    # HPACK: literals of fewer than 127 bytes, not indexed, not compressed.
    block = b"".join(bytes((0, len(name))) + name + bytes((len(value),)) + value for name, value in headers)
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
    return opening + _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(0, _END_STREAM, 1, bytes(5))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _trusting() -> ssl.SSLContext:
    """We speak to ourselves, and say nothing that anybody may not hear."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _reachable(host: str) -> str:
    """Where an address that means all of this machine's can be reached."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
