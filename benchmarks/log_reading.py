"""How fast sealed segments are read, beside pyarrow's own scan of the same files, and in how much memory.

Both read the same columns with the same threads, in one process and in turn, and files that the kernel has in memory.
The streaming reader also checks the checksum of each page and the rows' order of reading; the scan checks nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from benchmarks.comparison import spread
from benchmarks.log_made import make_segments, small
from bon_server.log.read.reader import LogReader

COLUMNS: dict[str, list[str] | None] = {
    "all": None,
    "candidates": ["ordinal", "request_id", "prompt_hash", "candidates"],
    "narrow": ["ordinal", "request_id", "prompt_hash", "created_at", "outcome", "selected_index"],
}
"""What is read: everything, what most selections need, and what is no list."""


def measure_rates(folder: Path, count: int, repetitions: int) -> dict[str, Any]:
    """Rows a second of both by columns, and `ratio` = ours ÷ pyarrow's, formed within each repetition."""
    make_segments(folder, count)
    figures = {}
    for name, columns in COLUMNS.items():
        ours: list[float] = []
        theirs: list[float] = []
        for repetition in range(-1, repetitions):  # the first warms both up and does not count
            pair = [(ours, _stream), (theirs, _scan)]
            for rates, read in pair if repetition % 2 == 0 else reversed(pair):
                rates.append(_rate(read, folder, columns, count))
        figures[name] = {
            "ratio": spread([a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]),
            "ours_rows_per_s": spread(ours[1:]),
            "pyarrow_rows_per_s": spread(theirs[1:]),
        }
    return {"records": count, "threads": pa.cpu_count(), "columns": figures}


def _rate(
    read: Callable[[Path, Sequence[str] | None], int], folder: Path, columns: Sequence[str] | None, count: int
) -> float:
    began = time.perf_counter()
    rows = read(folder, columns)
    seconds = time.perf_counter() - began
    if rows != count:
        raise RuntimeError(f"{read.__name__} read {rows} rows of {count}")
    return count / seconds


def _stream(folder: Path, columns: Sequence[str] | None) -> int:
    with LogReader(folder) as reader:
        return sum(batch.num_rows for batch in reader.batches(columns))


def _scan(folder: Path, columns: Sequence[str] | None) -> int:
    files = sorted(str(path) for path in (folder / "segments").rglob("*.parquet"))
    batches = ds.dataset(files).scanner(columns=columns).to_batches()
    return sum(batch.num_rows for batch in batches)


def measure_memory(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """Peak resident memory of a process that reads everything, by number of small records; `growth` over the first."""
    peaks = {}
    for count in counts:
        log = folder / str(count)
        make_segments(log, count, small)
        command = [sys.executable, "-m", "benchmarks.log_reading", str(log)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        found = json.loads(done.stdout)
        if found["rows"] != count:
            raise RuntimeError(f"the reader process read {found['rows']} rows of {count}")
        peaks[str(count)] = found["peak_kib"]
    least, most = (peaks[str(count)] for count in (min(counts), max(counts)))
    return {"growth": round(most / least - 1, 4), "peak_kib": peaks}


def _peak_kib() -> int:
    """Of this process since its start. `getrusage` would count what its parent held before the start as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    read = _stream(Path(sys.argv[1]), None)
    print(json.dumps({"rows": read, "peak_kib": _peak_kib()}))  # noqa: T201
