"""How fast the spool is sealed, how small segments are, and how long commits wait meanwhile.

It is sealed as a server does it while it runs, the start of the process for the rows included.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.comparison import spread
from benchmarks.log_commits import Commits, figures, open_loop
from benchmarks.log_records import CANDIDATES
from bon_server.config.settings import LogConfig
from bon_server.log.record import Record, encode, to_json
from bon_server.log.seal.sealing import seal_beside_commits
from bon_server.log.spool.spool import Spool

DEFAULTS = LogConfig()
BATCH_RECORDS = 256


def measure_sealing(
    folder: Path, records: Iterator[Record], count: int, rate_per_s: float, open_s: float, repetitions: int
) -> dict[str, Any]:
    """`rate` of sealing `count` records, `size` of what was made, and `commits` with and without sealing."""
    rates, megabytes, beside_rates = list[float](), list[float](), list[float]()
    without, beside = list[Commits](), list[Commits]()
    size = {}
    for repetition in range(repetitions):
        log = folder / "sealing"
        with closing(Spool.open(log)) as spool:
            encoded, raw_json = _fill(spool, records, count)
            began = time.perf_counter()
            _seal(spool)
            seconds = time.perf_counter() - began
            rates.append(count / seconds)
            megabytes.append(encoded / 1e6 / seconds)
            sealed = sum(file.stat().st_size for file in (log / "segments").rglob("*.parquet"))
            size = {
                "segment_bytes_per_candidate": round(sealed / count / CANDIDATES, 1),
                "json_bytes_per_candidate": round(raw_json / count / CANDIDATES, 1),
                "segments_to_json": round(sealed / raw_json, 4),
            }
            without.append(asyncio.run(open_loop(spool, records, rate_per_s, open_s, seed=repetition)))
            _seal(spool)
            _fill(spool, records, count)
            beside.append(_while_sealing(spool, records, rate_per_s, seed=repetition))
            beside_rates.append(count / beside[-1].seconds)
        shutil.rmtree(log)
    return {
        "records": count,
        "records_per_s": spread(rates),
        "encoded_mb_per_s": spread(megabytes),
        "size": size,
        "commits": {
            "rate_per_s": rate_per_s,
            "without_sealing": figures(without),
            "while_sealing": figures(beside),
            "sealed_records_per_s": spread(beside_rates),
        },
    }


def _fill(spool: Spool, records: Iterator[Record], count: int) -> tuple[int, int]:
    """Bytes of so many records, as the spool holds them and as JSON lines."""
    encoded = raw_json = 0
    for left in range(count, 0, -BATCH_RECORDS):
        some = list(islice(records, min(left, BATCH_RECORDS)))
        spool.append(some)
        encoded += sum(len(encode(one)) for one in some)
        raw_json += sum(len(to_json(one)) + 1 for one in some)
    return encoded, raw_json


def _seal(spool: Spool) -> int:
    return seal_beside_commits(spool, DEFAULTS.seal_bytes, DEFAULTS.replay_window_s).records


def _while_sealing(spool: Spool, records: Iterator[Record], rate_per_s: float, seed: int) -> Commits:
    """What is committed from the start to the end of a sealing, which is done as a server does it."""
    with ThreadPoolExecutor(1) as thread:
        sealing = thread.submit(_seal, spool)
        commits = asyncio.run(open_loop(spool, records, rate_per_s, math.inf, seed, lambda: not sealing.done()))
        sealing.result()
    return commits
