"""Talking to a port below gRPC: bytes, and old versions of TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from contextlib import ExitStack

import hpack

from tests.serving import frames
from tests.serving.guarded import Guard
from tests.waiting import SOON_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""With an empty SETTINGS frame, to which a server answers with its own: nine bytes or more."""


def speak(address: str, context: ssl.SSLContext | None, said: bytes) -> bytes:
    """What a port answers to these bytes."""
    host, _, port = address.rpartition(":")
    with ExitStack() as open_sockets:
        spoken = open_sockets.enter_context(socket.create_connection((host, int(port)), timeout=SOON_S))
        if context is not None:
            spoken = open_sockets.enter_context(context.wrap_socket(spoken, server_hostname=host))
        spoken.sendall(said)
        try:
            return spoken.recv(100)
        except ConnectionError:
            return b""


def talking(guard: Guard, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks this version of TLS and no later one."""
    context = ssl.create_default_context(cafile=str(guard.authority.file))
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL would not even try
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    return context


async def exchange(address: str, sent: bytes, context: ssl.SSLContext | None = None) -> dict[str, str]:
    """What the first call of a connection is answered: its headers and trailers; empty when the connection is cut."""
    host, _, port = address.rpartition(":")
    server_name = None if context is None else "localhost"
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=server_name)
    received, decoder = b"", hpack.Decoder()
    answered: dict[str, str] = {}
    try:
        writer.write(sent)
        async with asyncio.timeout(SOON_S):
            while "grpc-status" not in answered and (more := await reader.read(65536)):
                received += more
                for kind, _, stream, payload in frames.read(received):
                    received = received[frames.PREFIX_BYTES + len(payload) :]
                    if kind != frames.HEADERS:
                        continue
                    decoded = {str(name): str(value) for name, value in decoder.decode(payload)}
                    answered |= decoded if stream == 1 else {}
    except ConnectionError:
        pass
    finally:
        writer.close()
    return answered
