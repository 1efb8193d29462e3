"""What is wrong with added scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus
from bon_server.log.read.reader import LogReader
from bon_server.log.scores.files import FOLDER, ScoreFile, read_scores, score_files, score_model
from bon_server.log.scores.joined import KEY, join


class Found(NamedTuple):
    """A problem, as `verify_report.Problem` names it."""

    kind: str
    file: str
    detail: str
    row: int | None = None


def scores_problems(directory: Path, reader: LogReader) -> Iterator[Found]:
    """Reads all of them, and the keys of the log's records."""
    whole: list[ScoreFile] = []
    for folder in sorted(path for path in directory.glob(f"{FOLDER}/*") if path.is_dir()):
        name, files = folder.name, score_files(directory, folder.name)
        try:
            if files and score_model(directory, name) is None:
                yield Found("scores_damaged", f"{FOLDER}/{name}/model.json", "it is missing: nobody knows who scored")
        except LogError as error:
            yield Found("scores_damaged", f"{FOLDER}/{name}/model.json", str(error))
        seen: dict[str, set[int]] = {}
        for file in files:
            found = list(_of_file(directory, file, seen.setdefault(file.writer, set())))
            yield from found
            if not found:
                whole.append(file)
    if whole:
        yield from _of_other_records(directory, reader, whole)


def _of_other_records(directory: Path, reader: LogReader, files: list[ScoreFile]) -> Iterator[Found]:
    found: list[Found] = []

    def note(file: ScoreFile, error: LogError) -> None:
        if file.path.exists():  # it goes when all of its records are erased
            found.append(Found("scores_unfit", file.path.relative_to(directory).as_posix(), str(error)))
        files.remove(file)

    with suppress(LogError):  # of the log itself, which is looked at elsewhere
        for writer, batch in reader.batches_by_writer([*KEY, "candidates.index"]):
            lengths = batch["candidates"].value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            join([file for file in files if file.writer == writer], batch, lengths.astype(np.int64), note)
    yield from found


def _of_file(directory: Path, file: ScoreFile, seen: set[int]) -> Iterator[Found]:
    name = file.path.relative_to(directory).as_posix()
    try:
        rows = read_scores(file.path).to_pylist()
    except LogError as error:
        yield Found("scores_damaged", name, str(error))
        return
    for row in rows:
        ordinal = row["ordinal"]
        if not file.first_ordinal <= ordinal <= file.last_ordinal:
            yield Found("scores_unfit", name, "its ordinal is out of the file's range", ordinal)
        if ordinal in seen:
            yield Found("scores_unfit", name, "there are scores of this ordinal twice", ordinal)
        seen.add(ordinal)
        for index, candidate in enumerate(row["candidates"]):
            if not _is_well(index, candidate):
                yield Found("scores_unfit", name, f"candidates[{index}] does not fit its index or status", ordinal)


def _is_well(index: int, candidate: dict[str, Any]) -> bool:
    reward, status = candidate["reward"], candidate["status"]
    finite = reward is not None and math.isfinite(reward)
    fits = finite if status == CandidateStatus.SCORED else reward is None
    return fits and candidate["index"] == index and status in set(CandidateStatus)
