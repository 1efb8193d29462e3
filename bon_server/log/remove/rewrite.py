"""A sealed file without some of its rows, in place of the old one.

The new one is written whole under a temporary name and synced; the caller notes how it looks; then it takes the old
one's name, which also readers that list files see in one step. Row groups keep their order, schema and settings.

Rows of added scores go when their records do (`erase_scores`, `expire_scores`): whoever calls these holds
`changing_scores`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bon_server.log.catalog import Version
from bon_server.log.scores.files import FOLDER, SCORES, ScoreFile, overlapping, read_scores, score_files
from bon_server.log.segments.files import SegmentKind, footer_sha256, naming, open_parquet, parquet_writer
from bon_server.system.files import sha256_of, sync_folder, temporary_name

Key = tuple[str, str, int]
"""Of a record: principal, request id, attempt. Of an observation: principal, feedback id, ordinal."""


@dataclass(frozen=True, slots=True)
class Match:
    """What to erase: one of request id and tag."""

    request_id: str | None = None
    """Every attempt."""
    tag: tuple[str, str] | None = None
    """Key and value."""
    principal: str | None = None
    """Only what is this caller's; None: whose it is says the rest."""

    def is_of(self, principal: str, request_id: str) -> bool:
        """Whether the request is the one."""
        return self.request_id == request_id and self.may_be_of(principal)

    def may_be_of(self, principal: str) -> bool:
        """Whether something of this caller can match."""
        return self.principal in (None, principal)

    def has(self, tags: Mapping[str, str]) -> bool:
        """Whether the tag is among them."""
        return self.tag is not None and tags.get(self.tag[0]) == self.tag[1]


def matching_rows(path: Path, match: Match, about: Collection[Key]) -> Iterator[Key]:
    """Keys of the rows of a segment to remove. about: records whose feedback goes too, when it is one of feedback.

    Raises `LogError` when it cannot be read.
    """
    with closing(open_parquet(path)) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            with naming(path, f": row group {group}"):
                rows = _rows(parquet, group)
            for row in rows:
                key = (row["principal"], row["request_id"], row["attempt"])
                tags = {entry["key"]: entry["value"] for entry in row.get("tags") or ()}
                said = match.is_of(*key[:2]) or (match.has(tags) and match.may_be_of(row["principal"]))
                if said or key in about:
                    yield _key(row)


def keys_of(path: Path) -> set[Key]:
    """Of all rows of a segment. Raises `LogError` when it cannot be read."""
    keys: set[Key] = set()
    with closing(open_parquet(path)) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            with naming(path, f": row group {group}"):
                keys |= {_key(row) for row in _rows(parquet, group)}
    return keys


def _rows(parquet: Any, group: int) -> list[dict[str, Any]]:
    wanted = [name for name in ("principal", "request_id", "attempt", "tags", "ordinal", "feedback_id")
              if name in parquet.schema_arrow.names]  # fmt: skip
    rows: list[dict[str, Any]] = parquet.read_row_group(group, columns=wanted).to_pylist()
    return rows


def _key(row: Mapping[str, Any]) -> Key:
    if "feedback_id" in row:
        return row["principal"], row["feedback_id"], row["ordinal"]
    return row["principal"], row["request_id"], row["attempt"]


@contextmanager
def rewrite(path: Path, table: SegmentKind, keys: Collection[Key]) -> Iterator[Version]:
    """Yields how the file will look without the rows of `keys`; at the good end of the block it does.

    Raises `LogError` when it cannot be read, OSError when it cannot be written.
    """
    temporary = temporary_name(path)
    try:
        rows = _write_without(path, temporary, keys)
        yield Version(rows, temporary.stat().st_size, sha256_of(temporary), footer_sha256(temporary))
        temporary.rename(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write_without(path: Path, temporary: Path, keys: Collection[Key]) -> int:
    """Returns the rows that are left."""
    left = 0
    with (
        closing(open_parquet(path)) as parquet,
        os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        closing(parquet_writer(file, parquet.schema_arrow)) as writer,
    ):
        for group in range(parquet.metadata.num_row_groups):
            with naming(path, f": row group {group}"):
                keep = [_key(row) not in keys for row in _rows(parquet, group)]
                kept = parquet.read_row_group(group).filter(pa.array(keep, pa.bool_()))
            if kept.num_rows:
                writer.write_table(kept)
                left += kept.num_rows
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    return left


_TABLE = SegmentKind(FOLDER, SCORES, [("ordinal", "ascending")])


def erase_scores(directory: Path, match: Match, keys: Collection[Key]) -> dict[str, int]:
    """Removes the scores of the records that match or have one of the keys; returns rows removed by file.

    Raises `LogError` when a file cannot be read, so that it is not known what it holds.
    """
    removed = {}
    for file in score_files(directory):
        found = set(matching_rows(file.path, match, keys))
        if found:
            _remove(file, found)
            removed[file.path.relative_to(directory).as_posix()] = len(found)
    return removed


def expire_scores(directory: Path, writer: str, ordinals: NDArray[np.int64]) -> None:
    """Removes the scores of records of a writer. Raises `LogError` for a file that cannot be read."""
    for file in overlapping(score_files(directory), writer, int(ordinals.min()), int(ordinals.max())):
        table = read_scores(file.path, ("ordinal", "principal", "request_id", "attempt"))
        gone = np.flatnonzero(np.isin(table["ordinal"].to_numpy(), ordinals))
        keys: set[Any] = {(row["principal"], row["request_id"], row["attempt"]) for row in table.take(gone).to_pylist()}
        if keys:
            _remove(file, keys)


def _remove(file: ScoreFile, keys: Collection[Key]) -> None:
    """A file of which nothing is left goes."""
    with rewrite(file.path, _TABLE, keys) as version:
        pass
    if not version.rows:
        file.path.unlink()
        sync_folder(file.path.parent)
