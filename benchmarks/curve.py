"""`bon evaluate curve` on a large log, beside pyarrow reading its rewards once.

    python benchmarks/curve.py [--quick] [--logs FOLDER] [--out FILE]

Progress goes to stderr; the last line of stdout is one JSON document:

- `points_time_ratio`: seconds of `bon evaluate curve --no-intervals --json`, the whole process from its start to its
  end, ÷ those of pyarrow reading the column of rewards of the same files with two threads, in a process that is
  running; `curve_time_ratio`: the same with intervals. Of the larger log; by kind of reward and size in `runs`.
- `points_time_ratio_of_processes`, `curve_time_ratio_of_processes`: the same ÷ the whole process of a script that does
  nothing but import pyarrow and read that column.
- `memory_growth`: peak resident memory of the process with intervals and 1 M requests ÷ that with 0.1 M, less 1.

Logs have 16 candidates a request, see `select_made.py`. Rewards are `tied`, of two digits, with ties in nearly every
third request, which take few bytes and the exact KL; or `continuous`, without ties. Files are in the kernel's memory;
ratios are formed within a repetition. Nothing else should run on the machine.
"""

# A script's folder is where Python looks for modules first, and `select.py` there has the name of one others need.
import sys

if not __package__:
    sys.path[0] = __file__.rpartition("/benchmarks/")[0] or ".."

import argparse
import json
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.comparison import spread
from benchmarks.machine import machine, quiet, versions
from benchmarks.select_made import make_log

ROOT = Path(__file__).resolve().parent.parent
CANDIDATES = 16
TOKENS = 8
DIGITS = {"tied": 2, "continuous": 16}
REWARDS = ["candidates.list.element.reward"]
THREADS = 2
KINDS = {"points": ["--no-intervals"], "curve": []}
READ_IN_A_PROCESS = f"""
import glob, sys
import pyarrow as pa
import pyarrow.parquet as pq
pa.set_cpu_count({THREADS})
print(sum(pq.ParquetFile(file).read(columns={REWARDS}).num_rows for file in glob.glob(sys.argv[1])))
"""
FILES = "segments/*/*/*.parquet"


def main() -> None:
    """Measures and prints."""
    options = _options()
    sizes = (30_000, 100_000) if options.quick else (100_000, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="bon-curve-") as name:
        document = _measure(options.logs or Path(name), sizes, repetitions=3 if options.quick else 5)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.1 M requests, where starting Python is most of it")
    parser.add_argument("--logs", type=Path, help="folder for the logs, two gigabytes; kept, and used when it is there")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    return parser.parse_args()


def _measure(folder: Path, sizes: tuple[int, int], repetitions: int) -> dict[str, Any]:
    pa.set_cpu_count(THREADS)
    runs: dict[str, Any] = {}
    for rewards, digits in DIGITS.items():
        for size in sizes:
            log = folder / f"{rewards}-{size}"
            if not log.exists():
                _say(f"making a log of {size:,} requests, rewards {rewards}")
                make_log(log, size, CANDIDATES, TOKENS, digits)
    before = quiet()
    for rewards in DIGITS:
        runs[rewards] = {str(size): _times(folder / f"{rewards}-{size}", size, repetitions) for size in sizes}
    small, large = map(str, sizes)
    growths = [by_size[large]["curve"]["peak_kib"] / by_size[small]["curve"]["peak_kib"] for by_size in runs.values()]
    ratios = {
        f"{kind}_time_{ratio}": {rewards: by_size[large][kind][ratio]["median"] for rewards, by_size in runs.items()}
        for ratio in ("ratio", "ratio_of_processes")
        for kind in KINDS
    }
    return {
        **ratios,
        "memory_growth": round(max(growths) - 1, 3),
        "requests": sizes,
        "candidates": CANDIDATES,
        "repetitions": repetitions,
        "runs": runs,
        "idle_before": before.as_json(),
        "machine": machine(folder),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _times(log: Path, size: int, repetitions: int) -> dict[str, Any]:
    """Of pyarrow and of ours, one after the other in each repetition; the first warms up and does not count."""
    pyarrow: list[float] = []
    processes: list[float] = []
    ours: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
    for _ in range(1 + repetitions):
        pyarrow.append(_read(log, size))
        processes.append(_read_in_a_process(log, size))
        for kind, flags in KINDS.items():
            ours[kind].append(_evaluate(log, size, flags))
    return {
        "pyarrow_s": spread(pyarrow[1:]),
        "pyarrow_process_s": spread(processes[1:]),
        **{
            kind: {
                "seconds": spread([seconds for seconds, _ in times[1:]]),
                "ratio": _ratios(times[1:], pyarrow[1:]),
                "ratio_of_processes": _ratios(times[1:], processes[1:]),
                "peak_kib": max(peak for _, peak in times),
            }
            for kind, times in ours.items()
        },
    }


def _ratios(ours: list[tuple[float, int]], theirs: list[float]) -> dict[str, float]:
    return spread([seconds / one for (seconds, _), one in zip(ours, theirs, strict=True)])


def _read(log: Path, size: int) -> float:
    """Seconds of pyarrow for the rewards alone."""
    began = time.perf_counter()
    files = sorted(log.glob(FILES))
    rows = sum(pq.ParquetFile(file).read(columns=REWARDS).num_rows for file in files)
    seconds = time.perf_counter() - began
    _check(rows, size)
    return seconds


def _read_in_a_process(log: Path, size: int) -> float:
    """The same from the start of a Python to its end."""
    words = [sys.executable, "-c", READ_IN_A_PROCESS, str(log / FILES)]
    began = time.perf_counter()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    _check(int(done.stdout), size)
    return seconds


def _check(rows: int, size: int) -> None:
    if rows != size:
        raise RuntimeError(f"pyarrow read {rows} requests of {size}")


def _evaluate(log: Path, size: int, flags: list[str]) -> tuple[float, int]:
    """Seconds and peak KiB of the command."""
    words = [sys.executable, "-m", "benchmarks.curve_run", "evaluate", "curve", "--log", str(log), "--json", *flags]
    began = time.perf_counter()
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - began
    document = json.loads(done.stdout)
    if document["counts"]["requests"] != size or len(document["curve"]) != CANDIDATES:
        raise RuntimeError(f"the curve of {size} requests has other figures: {document['counts']}")
    _say(f"{log.name} {' '.join(flags)}: {seconds:.2f} s")
    return seconds, int(done.stderr.split()[-1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
