"""The steps of a sealing that are the same for records and for feedback."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import apsw

from bon_server.errors import LogError
from bon_server.log import register
from bon_server.log.register import Ledger, Segment
from bon_server.log.segments import footer_sha256, naming, open_parquet
from bon_server.log.spool import Spool
from bon_server.log.whole_file import sha256_of


def last_ordinal(reading: apsw.Connection, ledger: Ledger) -> int:
    """Of what is in the spool; 0: nothing is."""
    last: int = reading.execute(f"SELECT coalesce(max(ordinal), 0) FROM {ledger.rows}").get
    return last


def waiting_bytes(reading: apsw.Connection, ledger: Ledger) -> int:
    """Of what the next sealings take."""
    statement = f"SELECT coalesce(sum(length({ledger.content})), 0) FROM {ledger.rows} WHERE ordinal > ?"
    size: int = reading.execute(statement, (register.sealed_through(reading, ledger),)).get
    return size


def plan_next(
    spool: Spool, reading: apsw.Connection, until: int, seal_bytes: int, ledger: Ledger
) -> tuple[int, int] | None:
    """The range to seal next: that of an interrupted sealing first. None: nothing up to `until` is left to do."""
    interrupted = register.planned(reading, ledger)
    if interrupted is not None:
        return interrupted
    ordinals: list[int] = []
    size = 0
    rows = f"SELECT ordinal, length({ledger.content}) FROM {ledger.rows} WHERE ordinal > ? AND ordinal <= ?"
    after = register.sealed_through(reading, ledger)
    for ordinal, length in reading.execute(f"{rows} ORDER BY ordinal", (after, until)):
        ordinals.append(ordinal)
        size += length
        if size >= seal_bytes:
            break
    if not ordinals:
        return None
    first, last = ordinals[0], ordinals[-1]
    spool.transaction(lambda database: register.plan(database, first, last, ledger))
    return first, last


def read_back(directory: Path, rows: Mapping[str, int], first_last: tuple[int, int], until_us: int) -> list[Segment]:
    """Entries in the register of the files of a sealing, each with so many rows.

    When one does not read back, none stays: their rows are in the spool, and the next sealing needs the names. Raises
    `LogError`.
    """
    try:
        return [registered(directory, file, count, first_last, until_us) for file, count in rows.items()]
    except LogError:
        for file in rows:
            (directory / file).unlink(missing_ok=True)
        raise


def registered(directory: Path, file: str, rows: int, first_last: tuple[int, int], until_us: int) -> Segment:
    """A file's entry in the register. It is read back first: its rows are about to leave the spool.

    Raises `LogError` when it does not hold so many rows.
    """
    path = directory / file
    parquet = open_parquet(path)
    with naming(path), closing(parquet):
        # On this thread alone: whoever waits for a commit needs the other processors.
        groups = range(parquet.num_row_groups)
        read = sum(parquet.read_row_group(group, use_threads=False).num_rows for group in groups)
    if read != rows:
        raise LogError(f"{path} was written with {rows} rows and has {read}")
    return Segment(file, *first_last, rows, path.stat().st_size, sha256_of(path), footer_sha256(path), until_us)
