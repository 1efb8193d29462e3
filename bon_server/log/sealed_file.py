"""A file that was just written, read back before what it holds may leave the spool."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bon_server.errors import LogError
from bon_server.log.register import Segment
from bon_server.log.segments import footer_sha256, naming, open_parquet
from bon_server.log.whole_file import sha256_of


def registered(directory: Path, file: str, rows: int, first_last: tuple[int, int], until_us: int) -> Segment:
    """A file's entry in the register. It is read back first: its rows are about to leave the spool.

    Raises `LogError` when it does not hold so many rows.
    """
    path = directory / file
    parquet = open_parquet(path)
    with naming(path), closing(parquet):
        read = sum(parquet.read_row_group(group).num_rows for group in range(parquet.metadata.num_row_groups))
    if read != rows:
        raise LogError(f"{path} was written with {rows} rows and has {read}")
    return Segment(file, *first_last, rows, path.stat().st_size, sha256_of(path), footer_sha256(path), until_us)
