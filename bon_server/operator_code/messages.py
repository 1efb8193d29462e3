"""The messages between server and worker: msgpack, each after its length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

_LENGTH_BYTES = 4

Kind = Literal["number", "text"]
"""What the function must return: a reward or a text to log."""


class Setup(msgspec.Struct, array_like=True):
    """The first message to a worker: which function it calls."""

    what: str
    """Begins error messages: `reward 'function:m:f'`."""
    module: str
    name: str
    kind: Kind
    timeout_s: float
    """Time limit of a call; the worker applies it to async functions, the server to plain ones."""


class Call(msgspec.Struct, array_like=True):
    """One call of the function."""

    id: int
    positional: tuple[str, ...]
    named: dict[str, Any]


class Batch(msgspec.Struct, array_like=True):
    """To a worker: what it has to do now."""

    calls: list[Call]
    cancelled: list[int]
    """Calls of an async function that nobody waits for any more."""


class Calls(msgspec.Struct, array_like=True):
    """A `Batch` as the server sends it, with calls that are encoded already."""

    calls: list[msgspec.Raw]
    cancelled: list[int]


class Answer(msgspec.Struct, array_like=True):
    """From a worker. A worker's first answer, of no call, says that it is ready, or why it cannot be."""

    id: int
    value: float | str | None = None
    error: str | None = None
    """Why there is no value; never a message of the operator's code."""
    place: str = ""
    """`file.py:12` of an exception that the function raised; empty: it raised none."""


def frame(message: msgspec.Struct) -> bytes:
    """The bytes of a message."""
    encoded = msgspec.msgpack.encode(message)
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete now, without their lengths."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._bytes[:_LENGTH_BYTES], "little")
            if len(self._bytes) < end:
                return
            message = bytes(self._bytes[_LENGTH_BYTES:end])
            del self._bytes[:end]
            yield message
