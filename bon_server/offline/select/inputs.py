"""The plan of a selection, made from its options and from the files that are in the logs.

all_inputs   the files of the logs: segments, added scores, and what is in no segment yet
freeze       copies rows of a spool into Parquet files in the work folder: every later stage then reads files that
             do not change, in any process, also while the server goes on writing and sealing
make_plan    the tasks over all these files
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from bon_server.core.errors import LogError
from bon_server.core.types import ModelRef
from bon_server.log.read.reader import LogFile, LogReader, Where
from bon_server.log.scores.files import ScoreFile, overlapping, score_files, score_model
from bon_server.log.segments.files import SegmentName, SegmentsWriter, file_of, footer_sha256, open_parquet
from bon_server.log.segments.reader import SegmentView
from bon_server.offline.select.manifest import Input
from bon_server.offline.select.options import SelectOptions
from bon_server.offline.select.plan import File, Log, SelectionPlan, count_buckets, count_ranges, divide, time_range
from bon_server.system.files import sha256_of, whole_file

FROZEN_RECORDS = 1 << 12
"""About how many rows of a spool make one file, and are held in memory."""
_DATE = "1970-01-01"
"""Stands in the name of files that have rows of any date."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is read of a log."""

    reader: LogReader
    first_writer: int
    segments: tuple[File, ...]
    unsealed: tuple[LogFile, ...]
    """Files whose rows are copied first."""
    scorers: tuple[ModelRef, ...] | None = None
    """Who gave the added score to choose by; None: the log has none of this name."""
    scores: tuple[ScoreFile, ...] = ()
    """Files with it."""

    @classmethod
    def of(cls, reader: LogReader, first_writer: int, reward: str | None = None) -> Inputs:
        """Reads the spool once. reward: name of the reward to choose by; None: the logged one."""
        scorers = None if reward is None else score_model(reader.directory, reward)
        scores = () if reward is None or scorers is None else tuple(score_files(reader.directory, reward))
        known = {reader.directory / one.file: one for one in (*reader.segments, *reader.described.values())}
        files = []
        for writer, part in reader.parts_by_writer():
            segment = known.get(part.path)
            files.append(
                File(
                    # Asking the catalog again belongs to the process of the reader.
                    part=replace(part, path=part.path.resolve(), look_again=None),
                    writer=first_writer + reader.writers.index(writer),
                    name=str(part.path),
                    sha256=None if segment is None else segment.sha256,
                    rows=None if segment is None else segment.rows,
                    scores=_scores_of(part, writer, scores) if scorers is not None else None,
                )
            )
        return cls(reader, first_writer, tuple(files), tuple(reader.unsealed_sources()), scorers, scores)

    def scores_read(self) -> list[ScoreFile]:
        """Those of `scores` that may have some of what is read."""
        read = {score.path for one in self.segments for score in one.scores or ()}
        for source in self.unsealed:
            if source.rows:
                late = overlapping(self.scores, self.reader.own_writer, 0, source.last_ordinal)
                read.update(score.path.resolve() for score in late)
        return [score for score in self.scores if score.path.resolve() in read]

    @property
    def own_writer(self) -> int:
        """The writer of the rows that are in no segment."""
        return self.first_writer + self.reader.writers.index(self.reader.own_writer)

    def identity(self) -> list[list[Any]]:
        """Differs when anything that is read does."""
        sealed = [[one.name, one.sha256 or _footer(one.part.path)] for one in self.segments]
        scores = [[str(one.path), sha256_of(one.path)] for one in self.scores_read()]
        return sealed + [[str(one.file), one.sha256] for one in self.unsealed] + scores


def _scores_of(part: SegmentView, writer: str, scores: Sequence[ScoreFile]) -> tuple[ScoreFile, ...]:
    found = overlapping(scores, writer, part.first_ordinal, part.last_ordinal)
    return tuple(one._replace(path=one.path.resolve()) for one in found)


def measure_file(path: Path) -> tuple[int, str]:
    """Rows and SHA-256 of a segment; what cannot be read has none."""
    try:
        with closing(open_parquet(path)) as parquet:
            return parquet.metadata.num_rows, sha256_of(path)
    except LogError:
        return 0, sha256_of(path) if path.exists() else ""


def _footer(path: Path) -> str:
    try:
        return footer_sha256(path)
    except (OSError, ValueError):
        return "unreadable"


def all_inputs(readers: Sequence[LogReader], reward: str | None = None) -> tuple[Inputs, ...]:
    """Of each log; writers are counted through all of them. reward: see `Inputs.of`."""
    found: list[Inputs] = []
    for reader in readers:
        first_writer = sum(len(one.reader.writers) for one in found)
        found.append(Inputs.of(reader, first_writer, reward))
    return tuple(found)


def freeze(inputs: Inputs, work: Path, where: Where) -> dict[str, Any]:
    """Copies the rows that are in no segment; returns the files with first and last ordinal."""
    files: list[list[Any]] = []
    batches = inputs.reader.unsealed_batches(None, where)
    for pending in _by_count(batches):
        ordinals = [ordinal for batch in pending for ordinal in batch["ordinal"].to_pylist()]
        place = SegmentName(_DATE, str(inputs.own_writer), min(ordinals), max(ordinals))
        with SegmentsWriter(work, place.writer, place.first_ordinal, place.last_ordinal) as writer:
            for batch in pending:
                writer.add(_DATE, batch)
        files.append([file_of(place), place.first_ordinal, place.last_ordinal])
    return {"files": files}


def _by_count(batches: Iterator[Any]) -> Iterator[list[Any]]:
    pending: list[Any] = []
    for batch in batches:
        pending.append(batch)
        if sum(one.num_rows for one in pending) >= FROZEN_RECORDS:
            yield pending
            pending = []
    if pending:
        yield pending


def frozen_files(inputs: Inputs, work: Path, frozen: Any) -> Iterator[File]:
    """frozen: what `freeze` returned."""
    for file, first, last in frozen["files"]:
        part = SegmentView(work / file, _DATE, first, last)
        writer, name = inputs.own_writer, str(part.path)
        scores = _scores_of(part, inputs.reader.own_writer, inputs.scores) if inputs.scorers is not None else None
        yield File(part=part, writer=writer, name=name, sha256="", rows=0, frozen=True, scores=scores)


def make_plan(options: SelectOptions, inputs: Sequence[Inputs], work: Path) -> SelectionPlan:
    """work: where rows that are in no segment are copied to, or were by an earlier run."""
    work = work.resolve()
    files = tuple(file for one in inputs for file in (*one.segments, *_frozen(options, one, work)))
    writers = sum(len(one.reader.writers) for one in inputs)
    files = tuple(sorted(files, key=lambda file: file.writer))
    spans = [_span(files, writer) for writer in range(writers)]
    return SelectionPlan(
        out=options.out.resolve(),
        work=work,
        rule=options.the_rule(),
        filters=options.filters,
        format=options.the_format,
        seed=options.seed,
        written=options.written,
        logs=tuple(_log(log, one) for log, one in zip(options.logs, inputs, strict=True)),
        files=files,
        lowest=tuple(first for first, _ in spans),
        ranges=tuple(accumulate((count_ranges(*span) for span in spans), initial=0)),
        tasks=divide(files),
        buckets=count_buckets(files),
        repeated=len({file.writer for file in files}) > 1,
    )


def _log(log: Path, inputs: Inputs) -> Log:
    scorers = inputs.scorers
    refs = None if scorers is None else tuple((model.name, model.id, model.revision) for model in scorers)
    return Log(str(log), inputs.first_writer, refs)


def _span(files: Sequence[File], writer: int) -> tuple[int, int]:
    """First and last ordinal of a writer."""
    parts = [file.part for file in files if file.writer == writer]
    first = min((part.first_ordinal for part in parts), default=1)
    return first, max((part.last_ordinal for part in parts), default=first)


def _frozen(options: SelectOptions, inputs: Inputs, work: Path) -> list[File]:
    """Copies of rows that are in no segment; made once, also when the run is killed later."""
    summary = work / f"frozen-{inputs.first_writer:05d}.json"
    if not summary.exists():
        frozen = freeze(inputs, work, time_range(options.filters))
        with whole_file(summary) as file:
            file.write(json.dumps(frozen).encode())
    return list(frozen_files(inputs, work, json.loads(summary.read_bytes())))


def manifest_inputs(inputs: Sequence[Inputs], digests: Mapping[str, Sequence[Any]]) -> list[Input]:
    """The files that are read. digests: (rows, sha256) of those that are in no catalog, as far as they are known."""
    found = []
    for one in inputs:
        for file in one.segments:
            rows, sha256 = file.rows, file.sha256
            if rows is None or sha256 is None:
                rows, sha256 = digests.get(file.name) or measure_file(file.part.path)
            found.append(Input(file=file.name, rows=rows, sha256=sha256, last_ordinal=file.part.last_ordinal))
        found += [
            Input(file=str(source.file), rows=source.rows, sha256=source.sha256, last_ordinal=source.last_ordinal)
            for source in one.unsealed
        ]
        for score in one.scores_read():
            rows, sha256 = measure_file(score.path)
            found.append(Input(file=str(score.path), rows=rows, sha256=sha256, last_ordinal=score.last_ordinal))
    return found
