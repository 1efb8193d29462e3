"""A line on its way into the log, with what tells it from all other lines."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from bon_server.offline.imports.line import Line
from bon_server.offline.imports.scratch import scratch_database

DIGEST_BYTES = 32


class Arrival(NamedTuple):
    """A good line and where it came from."""

    file: int
    """Position of its file among those given."""
    number: int
    """Of the line in its file, from 1."""
    key: bytes
    """Its identity, the same in a renamed or split file: from its `id`, or else from `digest` and its occurrence."""
    digest: bytes
    """SHA-256 of its bytes."""
    line: Line
    text: bytes = b""
    """The line itself, where it may still be rejected."""

    @property
    def request_id(self) -> str:
        """Of the record that begins with this line."""
        return self.line.id or f"{self.key[:DIGEST_BYTES].hex()}-{int.from_bytes(self.key[DIGEST_BYTES:], 'big')}"


class Identities:
    """Gives lines their keys. Counts the occurrences of equal lines on disk: a file may not fit into memory."""

    def __init__(self) -> None:
        self._database = scratch_database(
            "CREATE TABLE seen (file INTEGER, digest BLOB, times INTEGER, PRIMARY KEY (file, digest)) WITHOUT ROWID"
        )

    def key(self, file: int, digest: bytes, line_id: str | None) -> bytes:
        """From its id, or else its digest and its occurrence in the file, from 1: equal lines are all data."""
        if line_id is not None:
            return hashlib.sha256(b"id\0" + line_id.encode()).digest()
        statement = "INSERT INTO seen VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        times: int = self._database.execute(statement, (file, digest)).get
        return digest + times.to_bytes(8, "big")

    def close(self) -> None:
        """Removes the database."""
        self._database.close()
