"""Makes the plan of a selection from its options and from what is in the logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from bon_server.log.whole_file import whole_file
from bon_server.offline.inputs import Inputs, freeze, frozen_files, measure_file
from bon_server.offline.manifest import Input
from bon_server.offline.options import SelectOptions
from bon_server.offline.plan import File, Log, Plan, count_buckets, count_ranges, divide, time_range


def make_plan(options: SelectOptions, inputs: Sequence[Inputs], work: Path) -> Plan:
    """work: where rows that are in no segment are copied to, or were by an earlier run."""
    work = work.resolve()
    files = tuple(file for one in inputs for file in (*one.segments, *_frozen(options, one, work)))
    writers = sum(len(one.reader.writers) for one in inputs)
    files = tuple(sorted(files, key=lambda file: file.writer))
    spans = [_span(files, writer) for writer in range(writers)]
    return Plan(
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
    """The files that are read. digests: (rows, sha256) of those that are not registered, as far as they are known."""
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
