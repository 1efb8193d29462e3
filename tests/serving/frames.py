"""HTTP/2 by hand: frames and header blocks that no client library would send."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32
PREFIX_BYTES = 9
"""Of each frame: length, kind, flags, stream."""
HUFFMAN = 0x80
"""Of a string whose bytes are Huffman codes. Ours never are, so text after this bit is nonsense to the decoder."""

Headers = Sequence[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame; length: what its prefix says where that is not the truth."""
    said = len(payload) if length is None else length
    return said.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def block(headers: Headers) -> bytes:
    """A header block (HPACK) of literals that neither index nor compress anything."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(value: bytes) -> bytes:
    rest = len(value) - 0x7F
    if rest < 0:
        return bytes((len(value),)) + value
    length = b"\x7f"
    while rest >= 0x80:
        length += bytes((rest & 0x7F | 0x80,))
        rest >>= 7
    return length + bytes((rest,)) + value


def of_call(path: bytes, scheme: bytes = b"http") -> list[tuple[bytes, bytes]]:
    """The headers that gRPC's clients send."""
    return [
        (b":method", b"POST"),
        (b":scheme", scheme),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]


def call(path: bytes, *messages: bytes, stream: int = 1, ends: bool = True) -> bytes:
    """The frames of a call. ends: whether the caller says that it sends no more."""
    last = END_STREAM if ends else 0
    body = b"".join(b"\x00" + len(one).to_bytes(4, "big") + one for one in messages)
    sent = frame(HEADERS, END_HEADERS | (0 if messages else last), stream, block(of_call(path)))
    return sent + (frame(DATA, last, stream, body) if messages else b"")


def opened(*frames: bytes) -> bytes:
    """All that a connection sends that begins as it should."""
    return OPENING + frame(SETTINGS, 0, 0) + b"".join(frames)


def read(received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each whole frame."""
    while len(received) >= PREFIX_BYTES:
        end = PREFIX_BYTES + int.from_bytes(received[:3], "big")
        if len(received) < end:
            return
        yield received[3], received[4], int.from_bytes(received[5:9], "big"), received[PREFIX_BYTES:end]
        received = received[end:]
