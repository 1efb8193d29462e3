"""Lines of one prompt, brought together: frameworks write a line per candidate, and not always side by side.

They wait in a temporary database on disk, in memory only as far as its cache goes, and come out prompt by prompt, in
the order in which each was first met, and within it in line order. What belongs together has the same prompt, reward
context, tags (the training step is one) and reward models. The database is private, and gone when it is closed, or with
the process.

An `Arrival` is a line on its way into the log, with what tells it from all other lines (`Identities`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import apsw
import msgspec

from bon_server.core.types import Candidate
from bon_server.offline.importing.line import ImportLine


def scratch_database(schema: str) -> apsw.Connection:
    """An empty database with these tables. Nothing in it is durable."""
    database = apsw.Connection("")
    database.pragma("journal_mode", "OFF")
    database.pragma("synchronous", "OFF")
    database.execute(schema)
    database.execute("BEGIN")  # one transaction for all: without it every row would be one of its own
    return database


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
    line: ImportLine
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


MAX_CANDIDATES = 1_024
"""Most candidates of one record; a prompt with more of them becomes several records."""
MAX_RECORD_BYTES = 16 << 20
"""About how long a record may become before the next is begun."""
_SCHEMA = """
CREATE TABLE prompts (id INTEGER PRIMARY KEY, identity BLOB UNIQUE, line BLOB);
CREATE TABLE candidates (prompt INTEGER, file INTEGER, number INTEGER, key BLOB, digest BLOB, candidates BLOB);
"""
_encode = msgspec.msgpack.Encoder().encode
_encode_identity = msgspec.json.Encoder(order="sorted").encode
_decode_line = msgspec.msgpack.Decoder(ImportLine).decode
_decode_candidates = msgspec.msgpack.Decoder(tuple[Candidate, ...]).decode


class Gathering:
    """A temporary database. Close it."""

    def __init__(self) -> None:
        self._database = scratch_database(_SCHEMA)

    def close(self) -> None:
        """Removes it."""
        self._database.close()

    def add(self, arrival: Arrival) -> None:
        """Keeps a line until `groups`."""
        line = arrival.line
        shared = ImportLine(line.prompt, (), line.reward_models, line.reward_context, line.tags)
        identity = hashlib.sha256(_encode_identity(shared)).digest()
        execute = self._database.execute
        prompt = execute("SELECT id FROM prompts WHERE identity = ?", (identity,)).get
        if prompt is None:
            execute("INSERT INTO prompts (identity, line) VALUES (?, ?)", (identity, _encode(shared)))
            prompt = self._database.last_insert_rowid()
        row = (prompt, arrival.file, arrival.number, arrival.key, arrival.digest, _encode(arrival.line.candidates))
        execute("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?)", row)

    def groups(self) -> Iterator[list[Arrival]]:
        """Lines that become one record."""
        group: list[Arrival] = []
        current, size_bytes = None, 0
        rows = self._database.execute(
            "SELECT candidates.*, line FROM candidates JOIN prompts ON id = prompt ORDER BY prompt, candidates.rowid"
        )
        for prompt, file, number, key, digest, candidates, line in rows:
            if group and (prompt != current or len(group) >= MAX_CANDIDATES or size_bytes >= MAX_RECORD_BYTES):
                yield group
                group, size_bytes = [], 0
            current = prompt
            size_bytes += len(candidates)
            shared = _decode_line(line)
            whole = ImportLine(
                shared.prompt,
                _decode_candidates(candidates),
                shared.reward_models,
                shared.reward_context,
                shared.tags,
            )
            group.append(Arrival(file, number, key, digest, whole))
        if group:
            yield group
