"""Added scores: what another reward model says of logged candidates, in files beside the segments, which do not change.

    LOG/scores/NAME/model.json                       {"name", "reward_models": [{"name", "id", "revision"}]}
    LOG/scores/NAME/writer=ID/FIRST-LAST.parquet     a row for each request; its lowest and highest ordinal
    LOG/scores/NAME/writer.lock                      held while scores are added under this name
    LOG/scores/changes.lock                          held for a moment, while a file is written or rows are removed

A row belongs to the record of its writer and ordinal, which stay the same when that is sealed; so records of the spool
have scores too. Rows hold no content: the key of the request, and numbers. Files do not change but for an erasure or
an expiry, and no two have a row of one request.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import ModelRef
from bon_server.log.segments.columns import REWARDS
from bon_server.log.segments.files import naming, open_parquet, parquet_writer
from bon_server.system.files import make_folder, whole_file

FOLDER = "scores"
MODEL_NAME = "model.json"
CHANGES_NAME = "changes.lock"
RESERVED = ("reward", "length", "tokens", "logprob", "truncated", "duplicate")
"""Names of numbers that every log has; see `evaluate/arrow_columns.py`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE = re.compile(r"scores/([^/]+)/writer=([A-Za-z0-9._-]+)/(\d{12,19})-(\d{12,19})\.parquet")

SCORE = pa.struct(
    [
        ("index", pa.int32()),
        ("reward", pa.float64()),
        ("rewards", REWARDS),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
SCORES = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("principal", pa.string()),
        ("request_id", pa.string()),
        ("attempt", pa.int32()),
        ("candidates", pa.list_(SCORE)),
    ],
    metadata={"schema_version": "1"},
)
"""Row of a file of scores: all candidates of the record, in index order. `reward` is finite where `status` is `scored`,
else null; `unscored` are those that could not be asked about."""


class ScoreFile(NamedTuple):
    """A file of scores, as its name says."""

    path: Path
    name: str
    writer: str
    first_ordinal: int
    last_ordinal: int


class ScoreModel(msgspec.Struct, frozen=True):
    """`model.json`: who gave the scores of a name."""

    name: str
    reward_models: tuple[ModelRef, ...]


def check_name(name: str) -> None:
    """Raises `ConfigError` for what cannot be the name of added scores."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ConfigError(
            f"name: {name!r} given; allowed are 1 to 100 letters, digits, '.', '_' and '-', no '.' first,"
            f" and none of {', '.join(RESERVED)}"
        )


def folder_of(directory: Path, name: str) -> Path:
    """Where the scores of a name are, or would be."""
    return directory / FOLDER / name


def score_names(directory: Path) -> list[str]:
    """The names under which a log has added scores, sorted."""
    return sorted(path.parent.name for path in directory.glob(f"{FOLDER}/*/{MODEL_NAME}"))


def score_model(directory: Path, name: str) -> tuple[ModelRef, ...] | None:
    """Who gave the scores of a name; None: the log has none. Raises `LogError` when it cannot be read."""
    path = folder_of(directory, name) / MODEL_NAME
    if not _NAME.fullmatch(name):  # a part of logged rewards may be called anything, and would be a path
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=ScoreModel).reward_models
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise LogError(f"{path} is damaged ({type(error).__name__})") from error


def write_model(directory: Path, name: str, models: Sequence[ModelRef]) -> None:
    """Writes `model.json` whole; its folder is there."""
    with whole_file(folder_of(directory, name) / MODEL_NAME) as file:
        file.write(msgspec.json.format(msgspec.json.encode(ScoreModel(name, tuple(models))), indent=1) + b"\n")


def score_file_of(directory: Path, path: Path) -> ScoreFile | None:
    """What the name of a file says; None: it is no file of scores."""
    match = _FILE.fullmatch(path.relative_to(directory).as_posix())
    return None if match is None else ScoreFile(path, match[1], match[2], int(match[3]), int(match[4]))


def score_files(directory: Path, name: str = "*", writer: str = "*") -> list[ScoreFile]:
    """The files of scores of a name and a writer (`*`: of all), in the order of their names."""
    found = (score_file_of(directory, path) for path in directory.glob(f"{FOLDER}/{name}/writer={writer}/*.parquet"))
    return sorted(file for file in found if file is not None)


def overlapping(files: Sequence[ScoreFile], writer: str, first: int, last: int) -> list[ScoreFile]:
    """Those that may have rows of a writer's ordinals first to last."""
    return within([file for file in files if file.writer == writer], first, last)


def within(files: Sequence[ScoreFile], first: int, last: int) -> list[ScoreFile]:
    """Those that may have rows of the ordinals first to last."""
    return [file for file in files if file.first_ordinal <= last and file.last_ordinal >= first]


def write_scores(directory: Path, name: str, writer: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows of `SCORES`, of rising ordinals, as a file. Blocks until it is on disk."""
    folder = folder_of(directory, name) / f"writer={writer}"
    make_folder(folder)
    path = folder / f"{rows[0]['ordinal']:012d}-{rows[-1]['ordinal']:012d}.parquet"
    batch = pa.RecordBatch.from_pylist(list(rows), SCORES)
    with whole_file(path) as file, closing(parquet_writer(file, SCORES)) as parquet:
        parquet.write_batch(batch)
    return path


def read_scores(path: Path, columns: Collection[str] = SCORES.names) -> Any:
    """These columns of a file of scores, an Arrow table. Raises `LogError` when it cannot be read."""
    with closing(open_parquet(path)) as parquet, naming(path):
        if not parquet.schema_arrow.equals(SCORES):
            raise LogError(f"{path} is damaged, or no file of scores: it has other columns")
        return parquet.read(columns=list(columns)).combine_chunks()


@contextmanager
def changing_scores(directory: Path) -> Iterator[None]:
    """Waits until nobody else writes or removes scores of a log, and keeps others out."""
    make_folder(directory / FOLDER)
    descriptor = os.open(directory / FOLDER / CHANGES_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
