"""How fast the spool is sealed, how small segments are, and how long commits wait meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.comparison import spread
from benchmarks.log_commits import open_loop
from benchmarks.log_records import CANDIDATES
from bon_server.config import LogConfig
from bon_server.log.record import Record, encode, to_json
from bon_server.log.sealing import seal
from bon_server.log.spool import Spool

DEFAULTS = LogConfig()
BATCH_RECORDS = 256


def measure_sealing(
    folder: Path, records: Iterator[Record], count: int, rate_per_s: float, open_s: float, repetitions: int
) -> dict[str, Any]:
    """`rate` of sealing `count` records, `size` of what was made, and `commits` with and without sealing."""
    rates, megabytes, alone, beside, shares = [], [], [], [], []
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
            quiet = asyncio.run(open_loop(spool, records, rate_per_s, open_s, seed=repetition))
            alone.append(quiet.percentile_ms(99))
            _fill(spool, records, count)
            busy, share = _while_sealing(spool, records, rate_per_s, open_s, seed=repetition)
            beside.append(busy)
            shares.append(share)
        shutil.rmtree(log)
    return {
        "records": count,
        "records_per_s": spread(rates),
        "encoded_mb_per_s": spread(megabytes),
        "size": size,
        "commits": {
            "rate_per_s": rate_per_s,
            "p99_ms_without_sealing": spread(alone),
            "p99_ms_while_sealing": spread(beside),
            "share_of_time_sealing": spread(shares),
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
    return seal(spool, DEFAULTS.seal_bytes, DEFAULTS.replay_window_s).records


def _while_sealing(
    spool: Spool, records: Iterator[Record], rate_per_s: float, open_s: float, seed: int
) -> tuple[float, float]:
    """99th percentile of commits, in ms, while another thread seals whatever there is; its share of the time."""
    stop = threading.Event()
    sealing_s = 0.0

    def keep_sealing() -> None:
        nonlocal sealing_s
        while not stop.is_set():
            began = time.perf_counter()
            if _seal(spool):
                sealing_s += time.perf_counter() - began
            stop.wait(0.01)

    thread = threading.Thread(target=keep_sealing)
    thread.start()
    began = time.perf_counter()
    try:
        commits = asyncio.run(open_loop(spool, records, rate_per_s, open_s, seed))
    finally:
        stop.set()
        share = sealing_s / (time.perf_counter() - began)
        thread.join()
    return commits.percentile_ms(99), share
