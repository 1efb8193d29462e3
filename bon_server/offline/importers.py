"""`bon log import`: other people's scored samples, as records of kind `import`.

Streaming, a batch of lines a transaction, and safe to run again, after a crash too: a line's request id is its `id`, or
else a digest of its bytes and how many times they have occurred in the file, and what is in the log already is left as
it is. Lines that cannot be imported are counted and written, with number and reason, to

    LOG/rejected/NAME-DIGEST.jsonl      {"line": 3, "reason": "…", "text": "…"}

DIGEST being of the file, so that a corrected file does not overwrite the report on the first one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import apsw
import msgspec

from bon_server.errors import ConfigError, LogError
from bon_server.log.record import Record, encode
from bon_server.log.spool import Spool
from bon_server.log.whole_file import sync_folder, whole_file
from bon_server.offline.grouped import PRINCIPAL, BadLine, Line, parse, to_record
from bon_server.offline.manifest import sha256_of

IMPORT_FORMATS = ("grouped",)
BATCH_RECORDS = 256
MAX_LINE_BYTES = 64 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What to import, and where to."""

    file: Path
    log: Path
    """Made when missing; no server may be writing it."""
    format: str = "grouped"
    reward_model: str | None = None
    """Names the source of the rewards; None: a digest of the file."""
    raw: bool = False
    """A plain-string prompt is a text to be continued, not one user message of a chat."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of the lines: `lines` = `imported` + `already_there` + `rejected`."""

    lines: int
    """Lines that are not blank."""
    imported: int
    already_there: int
    rejected: int
    rejected_file: str | None
    """Where the rejected lines are, with reasons; None: none were."""
    ignored_keys: dict[str, int]
    """Keys that the format does not have, with the number of lines that had them; they are not in the log."""
    reward_model: str
    """The name given to the source of the rewards."""


def import_file(options: ImportOptions, on_bytes: Callable[[int], None] = lambda read_bytes: None) -> ImportResult:
    """Imports a file and returns the counts. on_bytes: called with the bytes read so far, for a progress bar.

    Raises `LogLocked` while a server writes the log, `LogError` when file or log cannot be used, `LogFull` when the
    disk is full, and `ConfigError` for an unknown format.
    """
    if options.format not in IMPORT_FORMATS:
        raise ConfigError(f"format: {options.format!r} given; allowed are {', '.join(IMPORT_FORMATS)}")
    try:
        digest = sha256_of(options.file)
        with closing(Spool.open(options.log)) as spool, options.file.open("rb") as file:
            return _Import(options, digest, spool).run(file, on_bytes)
    except OSError as error:
        raise LogError(f"{error.filename or options.file} cannot be used: {error.strerror or error}") from error


class _Import:
    """One run over one file."""

    def __init__(self, options: ImportOptions, file_digest: str, spool: Spool) -> None:
        self._raw = options.raw
        self._reward_model = options.reward_model or f"file-sha256:{file_digest}"
        self._spool = spool
        self._began = datetime.now(UTC)
        self._occurrences = _Occurrences()
        self._rejected = _Rejected(options.log / "rejected" / f"{options.file.stem}-{file_digest[:12]}.jsonl")
        self._lines = self._imported = self._already_there = 0
        self._ignored_keys: Counter[str] = Counter()

    def run(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> ImportResult:
        """Reads the file to its end."""
        batch: list[tuple[int, bytes, Record]] = []
        with closing(self._occurrences), self._rejected.files:
            for number, text in _lines(file):
                self._lines += 1
                try:
                    batch.append((number, text, self._record(text)))
                except BadLine as reason:
                    self._rejected.add(number, str(reason), text)
                if len(batch) == BATCH_RECORDS:
                    self._commit(batch)
                    batch.clear()
                    on_bytes(file.tell())
            self._commit(batch)
            on_bytes(file.tell())
        return ImportResult(
            lines=self._lines,
            imported=self._imported,
            already_there=self._already_there,
            rejected=self._rejected.count,
            rejected_file=str(self._rejected.path) if self._rejected.count else None,
            ignored_keys=dict(sorted(self._ignored_keys.items())),
            reward_model=self._reward_model,
        )

    def _record(self, text: bytes) -> Record:
        if len(text) > MAX_LINE_BYTES:
            raise BadLine(f"longer than {MAX_LINE_BYTES} bytes")
        line = parse(text)
        request_id = line.id or self._digest_id(line)
        record = to_record(line, request_id, self._reward_model, self._raw, self._began)
        try:
            encode(record)
        except ValueError as error:
            raise BadLine(str(error)) from None
        self._ignored_keys.update(line.unknown_keys)
        return record

    def _digest_id(self, line: Line) -> str:
        """The digest of a line and 1 for its first occurrence in the file, 2 for the second: both are data."""
        return f"{line.digest}-{self._occurrences.count(line.digest)}"

    def _commit(self, batch: list[tuple[int, bytes, Record]]) -> None:
        ordinals = self._spool.append([record for _, _, record in batch])
        for (number, text, record), ordinal in zip(batch, ordinals, strict=True):
            if ordinal is not None:
                self._imported += 1
            elif self._is_logged(record):
                self._already_there += 1
            else:
                self._rejected.add(number, "id: another line with this id is in the log", text)

    def _is_logged(self, record: Record) -> bool:
        logged = self._spool.latest(PRINCIPAL, record.request_id)
        return logged is not None and logged.request_digest == record.request_digest


class _Rejected:
    """The report on lines that were not imported; the file is made for the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.files = ExitStack()
        """Closing it gives the report its name."""
        self._file: BinaryIO | None = None

    def add(self, number: int, reason: str, text: bytes) -> None:
        """number: of the line, from 1."""
        if self._file is None:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.path.parent.parent)
            self._file = self.files.enter_context(whole_file(self.path))
        self.count += 1
        shown = text[:MAX_LINE_BYTES].decode(errors="backslashreplace")
        self._file.write(msgspec.json.encode({"line": number, "reason": reason, "text": shown}) + b"\n")


class _Occurrences:
    """How many times each line was met, in a private temporary database: a file may not fit into memory."""

    def __init__(self) -> None:
        self._database = apsw.Connection("")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")

    def count(self, digest: str) -> int:
        """Times met, this one included."""
        statement = "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        times: int = self._database.execute(statement, (bytes.fromhex(digest),)).get
        return times

    def close(self) -> None:
        """Removes the database."""
        self._database.close()


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and bytes of the lines that are not blank; a line that is too long comes cut, still too long."""
    number = 0
    while text := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        rest = text
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        text = text.rstrip(b"\r\n")
        if number == 1:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if text.strip():
            yield number, text
