"""A process that turns pages of the spool into Arrow rows, for the length of a sealing.

Making them needs Python's lock nearly all the time, and every commit that happens meanwhile waits for that lock several
times over. The process reads no files and writes none: all that a crash could leave half-done is done by its parent, in
the same order as without it. It gets rows on its standard input and answers on its standard output, each message after
its length; when its input ends, as it does when its parent was killed, it ends too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import msgspec
import pyarrow as pa

from bon_server.errors import LogError
from bon_server.log.columns import SCHEMA
from bon_server.log.database import StoredRow
from bon_server.log.register import Sealed
from bon_server.log.sealed_page import SealedPage, seal_page

_LENGTH_BYTES = 8
_ANSWER_S = 60.0
"""How long the process may take for one page, its start included. Then it is killed: whoever ends the server waits."""
_END_S = 10.0
"""How long the process may take to end."""


class _Request(msgspec.Struct, array_like=True):
    keep_until_us: int
    rows: list[StoredRow]


class _Answer(msgspec.Struct, array_like=True):
    batches: list[tuple[str, bytes]]
    """Dates with messages of Arrow's IPC format."""
    sealed: list[Sealed]
    left: list[int]


@contextmanager
def sealing_process() -> Iterator[Callable[[Sequence[StoredRow], int], SealedPage]]:
    """Yields `sealed_page.seal_page` as it is done over there; it raises `LogError` when no answer came from there."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bon_server.log.sealing_process"],
        # It finds the modules where we did, and nowhere else.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what Python says of an error may quote what it was working on
    )
    try:
        yield lambda rows, keep_until_us: _ask(process, _Request(keep_until_us, list(rows)))
    finally:
        _end(process)


def _ask(process: subprocess.Popen[bytes], request: _Request) -> SealedPage:
    try:
        message = _answer(process, request)
        if message is not None:
            answer = msgspec.msgpack.decode(message, type=_Answer)
            batches = [(date, pa.ipc.read_record_batch(pa.py_buffer(batch), SCHEMA)) for date, batch in answer.batches]
            return SealedPage(batches, answer.sealed, answer.left)
    # The last two: what was taken for a length is none.
    except (msgspec.MsgspecError, pa.ArrowException, MemoryError, OverflowError) as error:
        raise LogError(f"the process that makes rows for segments wrote no answer ({type(error).__name__})") from error
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    raise LogError(
        f"the process that makes rows for segments ended with exit code {process.returncode};"
        f" after {_ANSWER_S:g} s without an answer it is killed"
    )


def _answer(process: subprocess.Popen[bytes], request: _Request) -> bytes | None:
    assert process.stdin is not None and process.stdout is not None
    overdue = threading.Timer(_ANSWER_S, process.kill)
    overdue.daemon = True
    overdue.start()
    try:
        with suppress(BrokenPipeError):  # then there is no answer either
            _send(process.stdin, request)
        return _receive(process.stdout)
    finally:
        overdue.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    with suppress(BrokenPipeError):  # it still held some of a request
        process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send(pipe: IO[bytes], message: object) -> None:
    encoded = msgspec.msgpack.encode(message)
    pipe.write(len(encoded).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(encoded)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """None: the other end is gone, perhaps in the middle of a message."""
    length = int.from_bytes(pipe.read(_LENGTH_BYTES), "little")
    message = pipe.read(length)
    return message if length and len(message) == length else None


def main() -> None:
    """Answers until there is no more input. Signals that end the server leave it to the server to end this."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    while (message := _receive(sys.stdin.buffer)) is not None:
        request = msgspec.msgpack.decode(message, type=_Request)
        page = seal_page(request.rows, request.keep_until_us)
        batches = [(date, batch.serialize().to_pybytes()) for date, batch in page.batches]
        _send(sys.stdout.buffer, _Answer(batches, page.sealed, page.left))


if __name__ == "__main__":
    main()
