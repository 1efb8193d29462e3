"""Logs to rescore, and what comes of it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bon_server.config.settings import RewardConfig
from bon_server.core.types import Message
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.log.scores.files import score_files
from bon_server.log.spool.spool import Spool
from bon_server.offline.rescore.rescore import Rescored, RescoreOptions, rescore
from tests.log.records import record, scored
from tests.log.seal.test_sealing import seal


def synthetic_reward(text: str) -> float:
    """What `--reward synthetic` says of a text."""
    return float(2.0 * zlib.crc32(text.encode(), 0) / 2**32 - 1.0)


def sampled(count: int, first: int = 0, **fields: Any) -> list[Record]:
    """Ragged requests of a few prompts, with equal texts among them."""
    made = []
    for number in range(first, first + count):
        draw = random.Random(number)
        candidates = [scored(i, draw.random(), text=f"answer {draw.randrange(40)}") for i in range(draw.randrange(6))]
        prompt = (Message("user", f"prompt {draw.randrange(20)}"),)
        made.append(record(f"r{number}", candidates=tuple(candidates), prompt_messages=prompt, **fields))
    return made


def commit(log: Path, records: Sequence[Record]) -> Path:
    """Into the spool."""
    with closing(Spool.open(log)) as spool:
        spool.append(records)
    return log


def rescored(log: Path, reward: str = "synthetic", name: str | None = "new", **config: Any) -> Rescored:
    """`bon rescore --log LOG --reward REWARD --name NAME`."""
    return rescore(RescoreOptions(log, RewardConfig(models=(reward,), **config), name))


def score_bytes(log: Path) -> dict[str, bytes]:
    """The files of added scores, by name, but for locks."""
    paths = (path for path in sorted((log / "scores").rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(log).as_posix(): path.read_bytes() for path in paths}


def score_rows(log: Path, name: str = "new") -> list[dict[str, Any]]:
    """The rows of all files of a name, by ordinal."""
    rows = [row for file in score_files(log, name) for row in pq.read_table(file.path, partitioning=None).to_pylist()]
    return sorted(rows, key=lambda row: int(row["ordinal"]))


def joined(log: Path, name: str = "new") -> list[tuple[str, float | None]]:
    """Text and added score of every candidate, as a reader sees them."""
    with LogReader(log) as reader:
        return [(one.text, one.rewards.get(name)) for record in reader.records() for one in record.candidates]


def expected(log: Path) -> list[tuple[str, float | None]]:
    return [(text, synthetic_reward(text)) for text, _ in joined(log)]


def half_sealed(log: Path) -> Path:
    with closing(Spool.open(log)) as spool:
        spool.append(sampled(30))
        seal(spool)
        spool.append(sampled(20, first=30))
    return log
