"""Transport: sizes, compression, metadata, TLS, starts without a port, and a caller who pings."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import grpc

from bon_server.core.errors import ConfigError, LogError, StartupError
from tests.faults.bad_bytes import SERVICE
from tests.faults.case import OK, Case, Check
from tests.faults.place import CANARY, Kind, Place, Seen, see, see_start
from tests.faults.sending import SYNTHETIC, ask

EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
TLS = Kind(tls=True)


def _all_scored(place: Place, seen: Seen) -> None:
    assert seen.answer.n_scored == 4


ANSWERED = Check("answered", _all_scored)

# Sizes


async def large_message(place: Place) -> Seen:
    return await see(place.stub.Generate(ask(text=CANARY * 400_000)))


async def bomb(place: Place) -> Seen:
    data = ask(text="x" * (32 << 20)).SerializeToString()
    call: Any = place.channel.unary_unary(f"{SERVICE}Generate")
    return await see(call(data, compression=grpc.Compression.Gzip))


async def honest(place: Place) -> Seen:
    return await see(place.stub.Generate(ask(), compression=grpc.Compression.Gzip))


async def large_metadata(place: Place) -> Seen:
    return await see(place.stub.Generate(ask(), metadata=(("large", CANARY * 2000),)))


async def odd_metadata(place: Place) -> Seen:
    metadata = (("x-anything", "ok"), ("x-binary-bin", b"\0\xff" * 100), ("authorization", "Bearer nonsense"))
    return await see(place.stub.Generate(ask(), metadata=metadata))


SIZES = [
    Case(name="message over 4 MiB", happens=large_message, ends=EXHAUSTED, kind=SYNTHETIC),
    Case(name="gzip bomb", happens=bomb, ends=EXHAUSTED, kind=SYNTHETIC),
    Case(name="honest gzip", happens=honest, ends=OK, checks=(ANSWERED,), kind=SYNTHETIC),
    Case(name="20 KB of metadata", happens=large_metadata, ends=EXHAUSTED, kind=SYNTHETIC),
    Case(name="metadata of all kinds", happens=odd_metadata, ends=OK, checks=(ANSWERED,), kind=SYNTHETIC),
]

# TLS


@dataclass(frozen=True)
class Connects:
    """Asks over a connection of its own, with somebody's certificate."""

    who: str

    async def __call__(self, place: Place) -> Seen:
        assert place.guard is not None and place.clients is not None
        own = None
        if self.who == "untrusted":
            own = place.guard.authority.signs("stranger")
        elif self.who != "nobody":
            own = place.clients.signs(self.who, expired=self.who == "expired")
        async with place.guard.channel(place.server.address, own) as channel:
            return await see(Place(place.server, channel, place.log, request_id=place.request_id).generate())


async def plain_text(place: Place) -> Seen:
    async with grpc.aio.insecure_channel(place.server.address) as channel:
        return await see(Place(place.server, channel, place.log).generate())


ENCRYPTION = [
    Case(name="plain text to a TLS port", happens=plain_text, ends=UNAVAILABLE, kind=TLS),
    Case(name="no client certificate", happens=Connects("nobody"), ends=UNAVAILABLE, kind=TLS),
    Case(name="untrusted client certificate", happens=Connects("untrusted"), ends=UNAVAILABLE, kind=TLS),
    Case(name="expired client certificate", happens=Connects("expired"), ends=UNAVAILABLE, kind=TLS),
    Case(name="good client certificate", happens=Connects("good"), ends=OK, checks=(ANSWERED,), kind=TLS),
]

# Starts beside a running server, which has to go on


async def taken_port(place: Place) -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return await see_start(place.log.parent / "other", **{"listen.port": taken.getsockname()[1]})


async def taken_metrics_port(place: Place) -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return await see_start(place.log.parent / "other", **{"listen.metrics_port": taken.getsockname()[1]})


async def bad_key_file(place: Place) -> Seen:
    keys = place.log.parent / "keys.toml"
    keys.write_text("[[key]\n")
    return await see_start(place.log.parent / "other", **{"security.api_keys": str(keys)})


async def bad_certificate(place: Place) -> Seen:
    file = place.log.parent / "no.pem"
    file.write_text("no certificate\n")
    settings = {"security.tls_cert": str(file), "security.tls_key": str(file)}
    return await see_start(place.log.parent / "other", **settings)


async def unreadable_log(place: Place) -> Seen:
    folder = place.log.parent / "unreadable"
    folder.mkdir(exist_ok=True)
    (folder / "spool.sqlite").write_bytes(b"no database " * 1000)
    return await see_start(folder)


async def log_that_is_a_file(place: Place) -> Seen:
    file = place.log.parent / "file"
    file.write_text("")
    return await see_start(file / "log")


def _starts(name: str, happens: Any, ends: type[ConfigError | StartupError | LogError], *says: str) -> Case:
    return Case(name=name, happens=happens, ends=ends, says=says)


STARTS = [
    _starts("port in use", taken_port, StartupError, "cannot listen on 127.0.0.1:", "in use"),
    _starts("metrics port in use", taken_metrics_port, StartupError, "cannot serve metrics on 127.0.0.1:", "in use"),
    _starts("bad file of API keys", bad_key_file, ConfigError, "keys.toml", "not TOML"),
    _starts("bad certificate", bad_certificate, ConfigError, "no.pem"),
    _starts("unreadable log", unreadable_log, LogError, "spool.sqlite"),
    _starts("log that is a file", log_that_is_a_file, LogError, "file/log"),
]

# Pings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""Of a client, with an empty SETTINGS frame."""
PING_FRAME, GOAWAY_FRAME = 6, 7
PINGS = 20


async def pings(place: Place) -> Seen:
    """As many pings as a client with a keepalive sends in minutes; gRPC's default is to bear two. One after the other:
    answers to those before may still come when the connection is cut."""
    host, _, port = place.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE)
    for _ in range(PINGS):
        writer.write(b"\x00\x00\x08" + bytes([PING_FRAME]) + bytes(5) + bytes(8))
        kind = None
        while kind != PING_FRAME:
            header = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(header[:3], "big"))
            kind = header[3]
            assert kind != GOAWAY_FRAME, "the connection is cut, and with it all calls"
    writer.close()
    await writer.wait_closed()
    return await see(place.generate())


KEEPALIVE = [Case(name="client keepalive, 20 pings in a row", happens=pings, ends=OK, checks=(ANSWERED,))]

CASES = [*SIZES, *ENCRYPTION, *STARTS, *KEEPALIVE]
