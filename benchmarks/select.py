"""Selecting from a large log, beside DuckDB's own queries over the same files.

    python benchmarks/select.py [--quick] [--parts time,memory,ray] [--work FOLDER] [--out FILE]

Progress goes to stderr; the last line of stdout is one JSON document:

- `select_time_ratio`, `top_k_overall_time_ratio`: seconds of `best-per-prompt` and of `top-k-overall` (k = 10,000),
  from the segments to Parquet with zstd ÷ those of DuckDB's fastest query and COPY; two threads each.
- `memory_growth`: peak resident memory with 1 M requests ÷ that with 0.1 M, less 1, of the rule where it is most.
- `ray_same_bytes`: whether a local cluster of two workers writes the same files; null where `ray` is not installed.

Logs have 8 candidates a request, see `select_made.py`. Every run is a process of its own; files are in the kernel's
memory; ratios are formed within a repetition and are medians over them. Nothing else should run on the machine.
"""

# A script's folder is where Python looks for modules first, and this file has the name of one that others need.
import sys

if not __package__:
    sys.path[0] = __file__.rpartition("/benchmarks/")[0] or ".."

import argparse
import json
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, quiet, versions
from benchmarks.select_made import make_log
from bon_server.system.files import sha256_of

ROOT = Path(__file__).resolve().parent.parent
RULES = ("best-per-prompt", "top-k-overall")
QUERIES = ("duckdb-join", "duckdb-lists")
PARTS = ("time", "memory", "ray")
K = 10_000
REPETITIONS = 3


def main() -> None:
    """Measures and prints."""
    options = _options()
    # Fewer than two files' worth of lines would tell nothing of how memory grows.
    sizes = (100_000, 300_000) if options.quick else (100_000, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="bon-select-", dir=options.work) as name:
        document = _measure(Path(name), sizes, options)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.3 M requests: some minutes instead of fifteen")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--ray-python", default=sys.executable, help="interpreter of an environment that has Ray")
    parser.add_argument("--work", type=Path, help="folder for logs and training sets, a few gigabytes")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    return parser.parse_args()


def _measure(folder: Path, sizes: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    parts = options.parts.split(",")
    before = quiet()
    document: dict[str, Any] = {}
    for size in sizes:
        _say(f"making a log of {size:,} requests")
        make_log(folder / str(size), size)
    small, large = (folder / str(size) for size in sizes)
    runs: dict[str, Any] = {}
    if "time" in parts:
        times = {rule: _times(folder, large, rule) for rule in RULES}
        document["select_time_ratio"] = times[RULES[0]]["ratio"]
        document["top_k_overall_time_ratio"] = times[RULES[1]]["ratio"]
        runs["times"] = times
    if "memory" in parts:
        runs["memory"] = {rule: _memory(folder, small, large, rule) for rule in RULES}
        document["memory_growth"] = max(one["growth"] for one in runs["memory"].values())
    if "ray" in parts:
        document["ray_same_bytes"] = _ray(folder, small, options.ray_python)
    return {
        **document,
        **runs,
        "requests": sizes,
        "k": K,
        "log_bytes": sum(path.stat().st_size for path in large.rglob("*.parquet")),
        "idle_before": before.as_json(),
        "machine": machine(folder),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _times(folder: Path, log: Path, rule: str) -> dict[str, Any]:
    """Seconds of everybody; `ratio` is over DuckDB's fastest query of all repetitions taken together."""
    seconds: dict[str, list[float]] = {who: [] for who in ("bon", *QUERIES)}
    rows = set()
    for repetition in range(REPETITIONS):
        for who in seconds if repetition % 2 == 0 else reversed(seconds):
            found = _run(folder, who, rule, log)
            seconds[who].append(found["seconds"])
            rows.add(found["rows"])
    if len(rows) != 1:
        raise RuntimeError(f"{rule}: different numbers of rows were chosen: {rows}")
    fastest = min(QUERIES, key=lambda who: sum(seconds[who]))
    ratios = sorted(ours / theirs for ours, theirs in zip(seconds["bon"], seconds[fastest], strict=True))
    return {
        "ratio": round(ratios[len(ratios) // 2], 3),
        "rows": rows.pop(),
        "duckdb": fastest,
        "seconds": {who: [round(one, 2) for one in each] for who, each in seconds.items()},
    }


def _memory(folder: Path, small: Path, large: Path, rule: str) -> dict[str, Any]:
    peaks = [_run(folder, "bon", rule, log)["peak_kib"] for log in (small, large)]
    return {"growth": round(peaks[1] / peaks[0] - 1, 3), "peak_kib": peaks}


def _ray(folder: Path, log: Path, python: str) -> bool | None:
    if subprocess.run([python, "-c", "import ray"], check=False, capture_output=True).returncode != 0:
        return None
    same = []
    for rule in RULES:
        written = []
        for who in ("bon", "ray"):
            _run(folder, who, rule, log, keep=True, python=python)
            written.append({path.name: sha256_of(path) for path in (folder / "out").iterdir()})
            shutil.rmtree(folder / "out")
        same.append(written[0] == written[1])
    return all(same)


def _run(
    folder: Path, who: str, rule: str, log: Path, keep: bool = False, python: str = sys.executable
) -> dict[str, Any]:
    out = folder / "out"
    words = [python, "-m", "benchmarks.select_run", who, rule, str(log), str(out), str(K)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    _say(f"{rule} by {who}: {found['seconds']:.2f} s, {found['peak_kib'] / 1024:,.0f} MiB, {found['rows']:,} rows")
    if not keep:
        shutil.rmtree(out)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
