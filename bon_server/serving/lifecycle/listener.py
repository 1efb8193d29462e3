"""The gRPC port: whatever ends the server behind it, another one takes its place, and calls in flight go on.

Two things are looked at: whether the server's loop that accepts calls has ended, and whether the port answers.
`listen_to` asks the port for its health below gRPC: whether somebody is behind it, not what the health is. A gRPC
channel would need the authority of our own certificate, and one of its own where callers must show one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from enum import Enum

import grpc
from prometheus_client import Counter

from bon_server.core.errors import StartupError
from bon_server.system.supervision import OnDeath, start_task

logger = logging.getLogger(__name__)


class Heard(Enum):
    """What comes back from a port."""

    ANSWER = "answer"
    """A call was accepted; or the connection was closed, as it is for want of a certificate or of room."""
    NOTHING = "nothing"
    """In the time given."""
    REFUSED = "refused"
    """Nobody listens."""


LOOK_S = 0.25
"""How often the accept loop is looked at."""
PROBE_EVERY_S = 5.0
PROBE_S = 5.0
"""How long the port may take to answer."""
SILENT_PROBES = 3
"""In a row mean that nobody is there; one may be a moment's load."""
PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Before each start, the last one from then on. It stays short: callers who can end a server can do so again."""
FAILED_STARTS = 20
"""In a row are too many."""
FORGET_S = 60.0
"""A server that lives this long makes up for the starts before it."""
CALLS_S = 600.0
"""How long calls of a server that was replaced may take. Who watches the health never ends."""

Open = Callable[[int], Awaitable[tuple[grpc.aio.Server, str]]]
"""Starts a server on this port (0: a free one); with its address, `host:port`. Raises `StartupError`."""
Probe = Callable[[int], Awaitable[Heard]]
"""Listens to this port of ours for at most `PROBE_S`."""


class Listener:
    """Keeps a port open from `start` until `stop`, or until it gives up."""

    def __init__(self, open_port: Open, probe: Probe, restarts: Counter, on_death: OnDeath) -> None:
        """restarts: counts the servers that took a port again. on_death: told when nobody looks after the port."""
        self._open = open_port
        self._probe = probe
        self._restarts = restarts
        self._on_death = on_death
        self._retiring: dict[asyncio.Task[None], grpc.aio.Server] = {}
        self._starts = 0
        """In the place of servers that did not live long."""
        self.gave_up: str | None = None
        """Why the port cannot be opened again; None while it is open or may be."""

    async def start(self, port: int) -> str:
        """Opens the port and returns `host:port`. Raises `StartupError`."""
        self._server, address = await self._open(port)
        self._port = int(address.rpartition(":")[2])
        self._following = start_task("listener", self._follow, self._on_death)
        return address

    async def stop(self, grace_s: float) -> None:
        """Closes the port; calls of this server and of those that it replaced may take `grace_s` more seconds."""
        tasks = [self._following, *self._retiring]
        servers = [self._server, *self._retiring.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    async def _follow(self) -> None:
        while self.gave_up is None:
            started_s = time.monotonic()
            why = await self._ended()
            logger.error("the gRPC port %d is opened again: %s", self._port, why)
            if time.monotonic() - started_s >= FORGET_S:
                self._starts = 0
            await self._replace()

    async def _ended(self) -> str:
        """Returns why, once the server accepts no more calls."""
        silent, asked_s = 0, time.monotonic()
        while True:
            try:
                if not await self._server.wait_for_termination(LOOK_S):
                    return "its server was stopped"
            except Exception as error:  # noqa: BLE001 -- whatever it is, the server does not accept calls any more
                return f"its server ended with {type(error).__name__}"
            if time.monotonic() - asked_s < PROBE_EVERY_S:
                continue
            heard = await self._probe(self._port)
            asked_s = time.monotonic()
            silent = silent + 1 if heard is Heard.NOTHING else 0
            if heard is Heard.REFUSED:
                return "nobody listened there"
            if silent == SILENT_PROBES:
                return f"it did not answer {SILENT_PROBES} times in a row"

    async def _replace(self) -> None:
        """Starts servers until one is up, or too many were not."""
        # First, because the old server has to let go of the port.
        retiring = asyncio.create_task(_let_finish(self._server))
        self._retiring[retiring] = self._server
        retiring.add_done_callback(self._retiring.pop)
        for _ in range(FAILED_STARTS):
            await asyncio.sleep(PAUSES_S[min(self._starts, len(PAUSES_S) - 1)])
            self._starts += 1
            try:
                self._server, _ = await self._open(self._port)
            except StartupError as error:
                logger.warning("the gRPC port was not opened again: %s", error)
            else:
                self._restarts.inc()
                logger.warning("the gRPC port is open again")
                return
        self.gave_up = f"the gRPC port {self._port} could not be opened again, {FAILED_STARTS} times in a row"


async def _let_finish(server: grpc.aio.Server) -> None:
    """Closes its port at once, and waits for its calls."""
    await server.stop(CALLS_S)


_HEADERS, _SETTINGS = 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_PREFIX_BYTES = 9
"""Of a frame: length, kind, flags, stream."""


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
