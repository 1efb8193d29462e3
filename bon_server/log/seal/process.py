"""A process that turns pages of the spool into Arrow rows, for the length of a sealing.

Making them needs Python's lock nearly all the time, and every commit that happens meanwhile waits for that lock several
times over. The process reads no files and writes none: all that a crash could leave half-done is done by its parent, in
the same order as without it. It gets rows on its standard input and answers on its standard output, each message after
its length; when its input ends, as it does when its parent was killed, it ends too.

`seal_page` is the work itself: from a page of the spool to a `SealedPage`, the rows for segments by date, and what
retries will be asked about.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import pyarrow as pa

from bon_server.core.errors import LogError
from bon_server.core.types import Kind
from bon_server.log.catalog import Sealed
from bon_server.log.record import Record, decode
from bon_server.log.segments.columns import SCHEMA, to_batch
from bon_server.log.spool.database import SPOOL_NAME, StoredRow, unpack


class SealedPage(NamedTuple):
    """Of some rows of the spool."""

    batches: list[tuple[str, pa.RecordBatch]]
    """UTC dates, YYYY-MM-DD, each with the records that began on it, in the order of their ordinals."""
    sealed: list[Sealed]
    """One for each record in `batches`."""
    left: list[int]
    """Ordinals of rows that are damaged or do not fit the columns."""


def seal_page(rows: Sequence[StoredRow], keep_until_us: int) -> SealedPage:
    """keep_until_us: how long the records answer retries; imported ones always do."""
    page = SealedPage([], [], [])
    for date, records in _by_date(_unpacked(rows, page.left)).items():
        for fitting, batch in _batches(records, page.left):
            page.batches.append((date, batch))
            page.sealed.extend(_sealed(record, keep_until_us) for record in fitting)
    return page


def _unpacked(rows: Sequence[StoredRow], left: list[int]) -> Iterator[Record]:
    for row in rows:
        try:
            yield unpack(row, decode, Path(SPOOL_NAME))
        except LogError:
            left.append(row.ordinal)


def _by_date(records: Iterator[Record]) -> dict[str, list[Record]]:
    dates: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        dates[record.created_at.astimezone(UTC).date().isoformat()].append(record)
    return dates


def _batches(records: list[Record], left: list[int]) -> Iterator[tuple[list[Record], pa.RecordBatch]]:
    """At most one, of the records that fit the columns."""
    try:
        yield records, to_batch(records)
    except ValueError:
        fitting = [record for record in records if _fits(record)]
        left += [record.ordinal or 0 for record in records if record not in fitting]
        if fitting:
            yield fitting, to_batch(fitting)


def _fits(record: Record) -> bool:
    try:
        to_batch([record])
    except ValueError:
        return False
    return True


def _sealed(record: Record, until_us: int) -> Sealed:
    return Sealed(
        record.principal,
        record.request_id,
        record.attempt,
        record.outcome,
        record.request_digest,
        record.content_logged,
        record.ordinal or 0,
        None if record.kind is Kind.IMPORT else until_us,
    )


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
    """Yields `seal_page` as it is done over there; it raises `LogError` when no answer came from there."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bon_server.log.seal.process"],
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
