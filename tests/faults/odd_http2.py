"""What a connection may send that no client library would: headers, frames, their order. All of it from a seed."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Callable
from random import Random

import h2.config
import h2.connection

from tests.serving import frames
from tests.serving.frames import Headers, frame

KNOWN = [
    b"/bon.v1.BestOfNService/Generate",
    b"/bon.v1.BestOfNService/GenerateStream",
    b"/bon.v1.BestOfNService/Score",
    b"/bon.v1.BestOfNService/RecordFeedback",
    b"/bon.v1.BestOfNService/GetServerInfo",
    b"/grpc.health.v1.Health/Check",
    b"/grpc.health.v1.Health/List",
    b"/grpc.health.v1.Health/Watch",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
NOT_UTF_8 = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80\x81", b"caf\xe9"]
ODD = [
    b"",
    b" ",
    b"\x00",
    b"\r\n",
    b"a\r\nb: c",
    b"\t",
    "ü".encode(),
    b"%",
    b"%ff",
    b"\x7f",
    b"x" * 300,
    b"x" * 9_000,
    *NOT_UTF_8,
]
PATHS = [
    b"",
    b"/",
    b"//",
    b"*",
    b"bon",
    b"/bon.v1.BestOfNService/",
    b"/bon.v1.BestOfNService/No",
    b"/../..",
    b"/" + b"a/" * 999,
]
TIMEOUTS = [
    b"",
    b"0n",
    b"1",
    b"S",
    b"-1S",
    b"99999999H",
    b"999999999H",
    b"1.5S",
    b"1s",
    b"0x1S",
    b"1S1S",
    b" 1S",
    b"\xff",
]
CONTENT_TYPES = [b"", b"application/grpc+proto", b"application/grpc+json", b"application/grpcx", b"text/html", b"\xff"]
BINARY = [b"", b"=", b"====", b"!!!!", b"YQ", b"YQ==,YQ==", b"a", b"\xff\xfe", b64encode(bytes(range(256)))]
NAMES = [
    *b" : ::path :unknown :status Upper colon: connection transfer-encoding host cookie content-length te -bin".split(
        b" "
    ),
    *b"grpc-status grpc-message grpc-encoding grpc-accept-encoding grpc-trace-bin grpc-tags-bin grpc-timeout".split(),
    *b"grpc-retry-pushback-ms grpc-previous-rpc-attempts user-agent traceparent authorization x-bin".split(),
    *b"x-endpoint-load-metrics-bin lb-token lb-cost-bin".split(),
    b"with space",
]
FORGED = b"\nforged line \x1b[31m"
"""Must come up nowhere."""
MESSAGE = b"\x0a\x01q"
"""Parsed by some of the methods."""
SETTINGS_VALUES = [0, 1, 2**14 - 1, 2**14, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


class Connection:
    """One connection, by the numbers of a generator."""

    def __init__(self, random: Random, scheme: bytes, keys: list[bytes]) -> None:
        """keys: values of `authorization`, of which a call may show one."""
        self._random = random
        self._scheme = scheme
        self._keys = keys

    def sent(self) -> bytes:
        """All that it sends."""
        kinds: list[Callable[[], bytes]] = [
            self._odd_headers,
            self._odd_headers_by_a_library,
            self._odd_order,
            self._odd_frames,
            self._odd_messages,
            self._floods,
            self._odd_settings,
            self._continued,
            self._padded,
            self._noise,
        ]
        return self._random.choice(kinds)()

    def _one_of(self, *values: bytes) -> bytes:
        return self._random.choice(values)

    def _often(self) -> bool:
        return self._random.random() < 0.5

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """Good ones."""
        headers = frames.of_call(self._random.choice(KNOWN), self._scheme)
        if self._keys and self._often():
            headers.append((b"authorization", self._random.choice(self._keys)))
        return headers

    def _spoilt(self) -> list[tuple[bytes, bytes]]:
        """With one to four oddities."""
        headers = self._headers()
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(headers)) if headers else 0
            name, value = headers[at] if headers else (b"x", b"x")
            odd = self._random.choice(ODD)
            match self._random.randrange(12):
                case 0:
                    headers[at : at + 1] = []
                case 1:
                    headers[at : at + 1] = [(name, odd)]
                case 2:
                    headers[at : at + 1] = [(name, value + odd)]
                case 3:
                    headers[at : at + 1] = [(name + odd, value)]
                case 4:
                    headers.append((name, value))
                case 5:
                    self._random.shuffle(headers)
                case 6:
                    headers.append((self._random.choice(NAMES), self._one_of(*ODD, *BINARY, *TIMEOUTS)))
                case 7:
                    headers = _with(headers, b":path", self._one_of(*PATHS, *(b"/" + one for one in NOT_UTF_8)))
                case 8:
                    headers = _with(headers, b"content-type", self._random.choice(CONTENT_TYPES))
                case 9:
                    headers.append((b"grpc-timeout", self._random.choice(TIMEOUTS)))
                case 10:
                    headers.append((b"x-odd-bin", self._random.choice(BINARY)))
                case 11:
                    headers.append((self._random.randbytes(self._random.randint(0, 9)), self._random.randbytes(9)))
        return headers

    def _messages(self) -> bytes:
        """The length-prefixed messages of a call; mostly one."""
        count = self._random.choice([1, 1, 1, 1, 0, 2, 3])
        return b"".join(b"\x00" + len(MESSAGE).to_bytes(4, "big") + MESSAGE for _ in range(count))

    def _odd_headers(self) -> bytes:
        calls = []
        for number in range(self._random.randint(1, 5)):
            stream, ends = 1 + 2 * number, self._often()
            flags = frames.END_HEADERS | (0 if ends else frames.END_STREAM)
            calls.append(frame(frames.HEADERS, flags, stream, frames.block(self._spoilt())))
            if ends:
                calls.append(frame(frames.DATA, frames.END_STREAM, stream, self._messages()))
        return frames.opened(*calls)

    def _odd_headers_by_a_library(self) -> bytes:
        """Compressed and indexed, as libraries send them."""
        connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        connection.initiate_connection()
        for number in range(self._random.randint(1, 5)):
            stream = 1 + 2 * number
            connection.send_headers(stream, self._spoilt())
            connection.send_data(stream, self._messages())
            if self._often():
                connection.send_headers(stream, self._trailers(), end_stream=True)
            else:
                connection.end_stream(stream)
        return connection.data_to_send()

    def _trailers(self) -> Headers:
        return [
            (self._one_of(*NAMES, b"x-trailer"), self._one_of(*ODD, *BINARY)) for _ in range(self._random.randint(1, 3))
        ]

    def _odd_order(self) -> bytes:
        """Good frames, more than once or not at all, in any order."""
        parts = [
            frame(frames.HEADERS, frames.END_HEADERS, 1, frames.block(self._headers())),
            frame(frames.DATA, 0, 1, self._messages()),
            frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, frames.block(self._trailers())),
            frame(frames.HEADERS, frames.END_HEADERS, 3, frames.block(self._headers())),
            frame(frames.DATA, frames.END_STREAM, 3, self._messages()),
            frame(frames.RST_STREAM, 0, self._random.choice([1, 3, 5]), self._number()),
            frame(frames.SETTINGS, 1, 0),
            frame(frames.WINDOW_UPDATE, 0, self._random.choice([0, 1]), self._number()),
            frame(frames.PRIORITY, 0, 1, self._number() + b"\x00"),
            frame(frames.GOAWAY, 0, 0, self._number() + self._number() + FORGED),
        ]
        chosen = [self._random.choice(parts) for _ in range(self._random.randint(1, 12))]
        return self._one_of(frames.opened(*chosen), frames.OPENING + b"".join(chosen))

    def _number(self) -> bytes:
        return self._random.choice([0, 1, 2, 8, 2**31 - 1, 2**31, 2**32 - 1]).to_bytes(4, "big")

    def _odd_frames(self) -> bytes:
        """Any kind, flags, stream and length."""
        sent = []
        for _ in range(self._random.randint(1, 10)):
            kind = self._random.choice([*range(10), self._random.randrange(256)])
            stream = self._random.choice([0, 1, 2, 3, 4, 5, 2**31 - 1, 2**32 - 1])
            headers = frames.block(self._spoilt() if self._often() else self._headers())
            payload = self._one_of(headers, self._random.randbytes(self._random.randint(0, 64)), self._number(), b"")
            length = self._random.choice([None, None, None, 0, len(payload) + 1, 2**14 + 1, 2**24 - 1])
            sent.append(frame(kind, self._random.randrange(256), stream, payload, length))
        return frames.opened(*sent)

    def _odd_messages(self) -> bytes:
        message = self._one_of(
            b"",
            b"\x00",
            b"\x00\x00\x00\x00",
            b"\x00" + (1 << 31).to_bytes(4, "big"),
            b"\x00" + (9).to_bytes(4, "big") + b"half",
            b"\x01" + len(MESSAGE).to_bytes(4, "big") + MESSAGE,
            b"\xff" + len(MESSAGE).to_bytes(4, "big") + MESSAGE,
            b"\x01" + len(gzip.compress(MESSAGE)).to_bytes(4, "big") + gzip.compress(MESSAGE),
            self._messages() + b"\x00",
            self._random.randbytes(100),
        )
        headers = self._headers()
        if self._often():
            headers.append((b"grpc-encoding", self._one_of(b"gzip", b"identity", b"br", b"\xff", b"")))
        last = self._random.choice([frames.END_STREAM, 0])
        half = self._random.randint(0, len(message))
        return frames.opened(
            frame(frames.HEADERS, frames.END_HEADERS, 1, frames.block(headers)),
            frame(frames.DATA, 0, 1, message[:half]),
            frame(frames.DATA, last, 1, message[half:]),
        )

    def _floods(self) -> bytes:
        """Of small frames; as many as one connection sends in a moment."""
        count = self._random.choice([10, 50, 200])
        match self._random.randrange(6):
            case 0:
                flood = [frame(frames.SETTINGS, 0, 0)] * count
            case 1:
                flood = [frame(frames.PING, 0, 0, bytes(8))] * count
            case 2:
                flood = [frame(frames.WINDOW_UPDATE, 0, 0, self._number())] * count
            case 3:  # calls that are begun and left at once
                flood = [
                    frame(frames.HEADERS, frames.END_HEADERS, stream, frames.block(self._headers()))
                    + frame(frames.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
                    for stream in range(1, 2 * count, 2)
                ]
            case 4:
                flood = [frame(frames.DATA, 0, 1)] * count
            case _:  # calls of methods that nobody has
                flood = [frames.call(b"/\xff", stream=stream) for stream in range(1, 2 * count, 2)]
        return frames.opened(*flood)

    def _odd_settings(self) -> bytes:
        pairs = b"".join(
            self._random.choice([0, 1, 2, 3, 4, 5, 6, 9, 0xFE03, 0xFFFF]).to_bytes(2, "big")
            + self._random.choice(SETTINGS_VALUES).to_bytes(4, "big")
            for _ in range(self._random.randint(0, 8))
        )
        settings = frame(frames.SETTINGS, self._random.choice([0, 0, 0, 1]), self._random.choice([0, 0, 0, 1]), pairs)
        return frames.OPENING + settings + frames.call(self._random.choice(KNOWN), MESSAGE) + settings

    def _continued(self) -> bytes:
        """A header block in pieces: too many, interrupted, without an end or a beginning."""
        block = frames.block(self._spoilt() if self._often() else self._headers())
        size = self._random.choice([1, 7, 50])
        pieces = [block[at : at + size] for at in range(0, len(block), size)] + [b""] * self._random.choice([0, 1, 50])
        sent = [frame(frames.HEADERS, 0, 1, pieces[0] if pieces else b"")]
        sent += [frame(frames.CONTINUATION, 0, 1, piece) for piece in pieces[1:]]
        if self._often():
            sent.append(frame(frames.CONTINUATION, frames.END_HEADERS, 1))
        match self._random.randrange(4):
            case 0:
                sent.insert(self._random.randrange(len(sent)), frame(frames.PING, 0, 0, bytes(8)))
            case 1:
                sent = sent[1:]
            case 2:
                sent.insert(1, frame(frames.CONTINUATION, 0, 3, b""))
            case _:
                sent.append(frame(frames.DATA, frames.END_STREAM, 1, self._messages()))
        return frames.opened(*sent)

    def _padded(self) -> bytes:
        block, messages = frames.block(self._headers()), self._messages()
        pad = self._random.choice([0, 1, 255])
        really = self._random.choice([pad, 0, 3])
        priority = self._number() + b"\x10"
        return frames.opened(
            frame(
                frames.HEADERS,
                frames.END_HEADERS | frames.PADDED | frames.WITH_PRIORITY,
                1,
                bytes((pad,)) + priority + block + bytes(really),
            ),
            frame(frames.DATA, frames.END_STREAM | frames.PADDED, 1, bytes((pad,)) + messages + bytes(really)),
        )

    def _noise(self) -> bytes:
        noise = self._random.randbytes(self._random.randint(0, 300))
        whole = frames.opened(frames.call(self._random.choice(KNOWN), MESSAGE))
        changed = bytearray(whole)
        for _ in range(self._random.randint(1, 5)):
            changed[self._random.randrange(len(changed))] = self._random.randrange(256)
        return self._one_of(
            noise,
            frames.OPENING + noise,
            frames.opened(noise),
            whole[: self._random.randrange(len(whole))],
            bytes(changed),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"",
        )


def _with(headers: list[tuple[bytes, bytes]], name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [(each, value if each == name else given) for each, given in headers]
