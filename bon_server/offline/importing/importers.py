"""`bon log import`: other people's scored samples, as records of kind `import`.

Streaming, a batch of records a transaction, and safe to run again, after a crash too: each line has a key, its `id` or
else a digest of its bytes and how many times they have occurred in its file, and lines that are in the log already are
left out. Formats with a line per candidate are gathered prompt by prompt first. Lines that cannot be imported are
counted and written, with number and reason, to

    LOG/rejected/NAME-DIGEST.jsonl      {"file": "…", "line": 3, "reason": "…", "text": "…"}

DIGEST being of the files, so that a corrected file does not overwrite the report on the first one. The report holds
what the lines held, so it is for its owner only. It appears, whole, when the import ends.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import structs

from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus, Kind, ModelRef, Outcome
from bon_server.log.record import Record, encode, prompt_hash
from bon_server.log.spool.spool import Spool
from bon_server.offline.importing.gathering import Arrival, Gathering, Identities
from bon_server.offline.importing.imported import ImportedLine, append, known
from bon_server.offline.importing.line import BadImportLine, ImportLine, Reading
from bon_server.offline.importing.options import IMPORT_FORMATS, ImportOptions, ImportResult, check
from bon_server.offline.importing.rows import ImportRow, is_parquet, parse, rows
from bon_server.system.files import sha256_of, sync_folder, whole_file

PRINCIPAL = "import"
"""Imported ids are apart from those of callers: an imported line never answers a request."""
BATCH_RECORDS = 256
BATCH_BYTES = 16 << 20
"""About how much of the files is held in memory before it is committed."""


def import_files(options: ImportOptions, on_bytes: Callable[[int], None] = lambda read_bytes: None) -> ImportResult:
    """Imports files and returns the counts. on_bytes: called with the bytes read so far, for a progress bar.

    Raises `LogLocked` while a server writes the log, `LogError` when a file or the log cannot be used, `LogFull` when
    the disk is full, and `ConfigError` for options that there are not.
    """
    check(options)
    try:
        digests = [sha256_of(file) for file in options.files]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        with closing(Spool.open(options.log)) as spool, ExitStack() as stack:
            return _Import(options, digest, spool, stack).run(on_bytes)
    except OSError as error:
        raise LogError(f"{error.filename or options.files[0]} cannot be used: {error.strerror or error}") from error


class _Import:
    """One run over some files."""

    def __init__(self, options: ImportOptions, files_digest: str, spool: Spool, stack: ExitStack) -> None:
        self._files = options.files
        self._format = IMPORT_FORMATS[options.format]
        self._reading = Reading(options.raw, options.reward_columns)
        self._renamed = options.reward_model
        self._reward_model = options.reward_model or f"file-sha256:{files_digest}"
        self._spool = spool
        self._began = datetime.now(UTC)
        self._identities = stack.enter_context(closing(Identities()))
        self._gathering = stack.enter_context(closing(Gathering()))
        report = options.log / "rejected" / f"{options.files[0].stem}-{files_digest[:12]}.jsonl"
        self._rejected = Rejected(options.rejected or report)
        self._lines = self._imported = self._already_there = 0
        self._requests = self._candidates = self._scored = 0
        self._ignored_keys: Counter[str] = Counter()

    def run(self, on_bytes: Callable[[int], None]) -> ImportResult:
        """Reads the files to their end."""
        with self._rejected.files:
            arrivals = self._arrivals(on_bytes)
            if self._format.line_per_candidate:
                for arrival in arrivals:
                    self._gathering.add(arrival)
                self._commit_all(self._gathering.groups())
            else:
                self._commit_all([arrival] for arrival in arrivals)
        return ImportResult(
            lines=self._lines,
            imported=self._imported,
            already_there=self._already_there,
            rejected=self._rejected.count,
            requests=self._requests,
            candidates=self._candidates,
            scored=self._scored,
            rejected_file=str(self._rejected.path) if self._rejected.count else None,
            ignored_keys=dict(sorted(self._ignored_keys.items())),
            reward_model=self._reward_model,
        )

    def _arrivals(self, on_bytes: Callable[[int], None]) -> Iterator[Arrival]:
        """Good lines, in order; the others are reported."""
        before_bytes = 0
        for position, file in enumerate(self._files):
            reading = replace(self._reading, typed=is_parquet(file))
            for row in rows(file):
                self._lines += 1
                if self._lines % BATCH_RECORDS == 0:
                    on_bytes(before_bytes + row.read_bytes)
                try:
                    yield self._arrival(position, row, reading)
                except BadImportLine as reason:
                    self._rejected.add(file, row.number, str(reason), row.text)
            before_bytes += file.stat().st_size
            on_bytes(before_bytes)

    def _arrival(self, file: int, row: ImportRow, reading: Reading) -> Arrival:
        if row.problem is not None:
            raise BadImportLine(row.problem)
        fields = parse(row.text)
        try:
            line = self._with_names(self._format.read(fields, reading))
            arrival = Arrival(file, row.number, b"", hashlib.sha256(row.text).digest(), line)
            encode(self._record([arrival._replace(key=arrival.digest)]))
        except RecursionError:
            raise BadImportLine("nested too deeply") from None
        except ValueError as error:
            raise BadImportLine(str(error)) from None
        self._ignored_keys.update(_printable(line.ignored))
        text = b"" if self._format.line_per_candidate else row.text
        return arrival._replace(key=self._identities.key(file, arrival.digest, line.id), text=text)

    def _with_names(self, line: ImportLine) -> ImportLine:
        """The caller's name for a single reward model comes before the line's."""
        return replace(line, reward_models=()) if self._renamed and len(line.reward_models) == 1 else line

    def _commit_all(self, groups: Iterator[list[Arrival]]) -> None:
        batch: list[list[Arrival]] = []
        size_bytes = 0
        for group in groups:
            batch.append(group)
            size_bytes += sum(len(candidate.text) for arrival in group for candidate in arrival.line.candidates)
            if len(batch) >= BATCH_RECORDS or size_bytes >= BATCH_BYTES:
                self._commit(batch)
                batch, size_bytes = [], 0
        self._commit(batch)

    def _commit(self, batch: list[list[Arrival]]) -> None:
        """One transaction. Each group becomes a record of those of its lines that are not in the log yet."""
        there = known(self._spool, [arrival.key for group in batch for arrival in group])
        new = [fresh for group in batch if (fresh := self._fresh(group, there))]
        records = [(self._record(group), [ImportedLine(one.key, one.digest) for one in group]) for group in new]
        for group, (record, _), ordinal in zip(new, records, append(self._spool, records), strict=True):
            if ordinal is None:
                self._count_taken(group)
                continue
            self._imported += len(group)
            self._requests += 1
            self._candidates += len(record.candidates)
            self._scored += sum(candidate.status is CandidateStatus.SCORED for candidate in record.candidates)

    def _fresh(self, group: list[Arrival], there: dict[bytes, bytes]) -> list[Arrival]:
        """Lines that are not in the log; adds them to `there`."""
        fresh = []
        for arrival in group:
            digest = there.setdefault(arrival.key, b"")
            if digest == b"":
                there[arrival.key] = arrival.digest
                fresh.append(arrival)
            elif digest == arrival.digest:
                self._already_there += 1
            else:
                self._reject_id(arrival)
        return fresh

    def _count_taken(self, group: list[Arrival]) -> None:
        """A record of this request id came from a version that did not keep lists of lines."""
        for arrival in group:
            logged = self._spool.latest(PRINCIPAL, arrival.request_id)
            if logged is not None and logged.request_digest == arrival.digest.hex():
                self._already_there += 1
            else:
                self._reject_id(arrival)

    def _reject_id(self, arrival: Arrival) -> None:
        reason = "id: another line with this id is in the log"
        self._rejected.add(self._files[arrival.file], arrival.number, reason, arrival.text)

    def _record(self, group: list[Arrival]) -> Record:
        """The record of lines that share all but their candidates. Raises ValueError, see `encode`.

        Nothing was chosen when the lines were made, as far as they say, so nothing is selected in the record either.
        """
        line = group[0].line
        together = [candidate for arrival in group for candidate in arrival.line.candidates]
        candidates = tuple(
            candidate if candidate.index == index else structs.replace(candidate, index=index)
            for index, candidate in enumerate(together)
        )
        scored = all(candidate.status is CandidateStatus.SCORED for candidate in candidates)
        return Record(
            request_id=group[0].request_id,
            request_digest=group[0].digest.hex(),
            principal=PRINCIPAL,
            kind=Kind.IMPORT,
            outcome=Outcome.OK if scored else Outcome.PARTIAL,
            created_at=self._began,
            prompt_hash=prompt_hash(line.prompt, line.reward_context),
            prompt_text=line.prompt.text,
            prompt_messages=line.prompt.messages,
            n=len(candidates),
            candidates=candidates,
            reward_models=_refs(line.reward_models or (self._reward_model,)),
            reward_context=line.reward_context,
            tags=line.tags,
        )


def _refs(names: tuple[str, ...]) -> tuple[ModelRef, ...]:
    """A single one has its id from the lines; several need names of their own."""
    return tuple(ModelRef(name if len(names) > 1 else "reward", name, "") for name in names)


def _printable(keys: frozenset[str]) -> list[str]:
    """Keys come from the file; a lone surrogate cannot be printed."""
    return [key.encode(errors="backslashreplace").decode() for key in keys]


class Rejected:
    """A report; its file is made for the first rejected line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.files = ExitStack()
        """Closing it gives the report its name."""
        self._file: BinaryIO | None = None

    def add(self, source: Path, number: int, reason: str, text: bytes) -> None:
        """number: of the line in its source, from 1."""
        if self._file is None:
            if not self.path.parent.exists():
                self.path.parent.mkdir(mode=0o700)
                sync_folder(self.path.parent.parent)
            self._file = self.files.enter_context(whole_file(self.path))
        self.count += 1
        row = {
            "file": str(source).encode(errors="backslashreplace").decode(),
            "line": number,
            "reason": reason.encode(errors="backslashreplace").decode(),
            "text": text.decode(errors="backslashreplace"),
        }
        self._file.write(msgspec.json.encode(row) + b"\n")
