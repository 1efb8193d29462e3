"""The log by itself: how fast it acknowledges, seals and is read, and in how much memory.

    python benchmarks/log.py [--quick] [--durability fsync,group,async] [--parts commits,sealing,reading,memory]
                             [--work FOLDER] [--out FILE]

Progress goes to stderr; the last line of stdout is one JSON document. Headline keys, of durability `fsync`:

- `records_per_s`: acknowledged records a second with 64 writers waiting, 16 candidates of about 60 tokens each.
- `commit_p99_ms_at_half_load`: 99th percentile of the time from when a record is due to its acknowledgement, at 500
  records a second that come at random moments.
- `reader_rate_ratio`: rows a second of the streaming reader over sealed segments ÷ those of pyarrow's own scan of the
  same files, same columns, same threads: the least of the medians over three choices of columns.
- `memory_growth`: peak resident memory of a process that streams 1 M records ÷ that at 100 k, less 1.

All are medians over repetitions. `commits` has them by durability and by number of waiting writers, with the least and
the most; `sealing` has its rate, the size of segments against JSON, and how long commits at half load take while a
sealing runs; `disk` says what the same disk does without a log. Nothing else should run on the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules in this folder, where it would find `select.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.log_commits import FULL, QUICK, CommitSizes, measure_commits, measure_disk
from benchmarks.log_reading import measure_memory, measure_rates
from benchmarks.log_records import records
from benchmarks.log_sealing import measure_sealing
from benchmarks.machine import machine, quiet, versions
from bon_server.core.types import Durability

HEADLINE_WAITERS = "64"
PARTS = ("commits", "sealing", "reading", "memory")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    commits: CommitSizes
    seal_records: int
    read_records: int
    memory_records: tuple[int, ...]
    """Of small records, see `benchmarks/log_made.py`."""
    repetitions: int


FULL_SIZES = Sizes(FULL, seal_records=20_000, read_records=20_000, memory_records=(100_000, 1_000_000), repetitions=5)
QUICK_SIZES = Sizes(QUICK, seal_records=2_000, read_records=4_000, memory_records=(20_000, 100_000), repetitions=3)


def main() -> None:
    """Measures and prints."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bon-log-", dir=options.work) as folder:
        sizes = QUICK_SIZES if options.quick else FULL_SIZES
        document = _measure(Path(folder), options.durability, options.parts, sizes)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: two minutes instead of twenty")
    parser.add_argument("--durability", type=_durabilities, default="fsync,group,async", help="which (default: all)")
    parser.add_argument("--parts", type=_parts, default=PARTS, help="which, with commas between (default: all)")
    parser.add_argument("--work", type=Path, help="folder for the log, on the file system that is to be measured")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    return parser.parse_args()


def _durabilities(names: str) -> list[Durability]:
    return [Durability(name) for name in names.split(",")]


def _parts(names: str) -> list[str]:
    parts = names.split(",")
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{names!r} given; allowed are {', '.join(PARTS)}")
    return parts


def _measure(folder: Path, durabilities: list[Durability], parts: Sequence[str], sizes: Sizes) -> dict[str, Any]:
    _say("watching whether the machine is quiet")
    before = quiet()
    document: dict[str, Any] = {}
    if "commits" in parts:
        document |= _commits(folder, durabilities, sizes.commits)
    if "sealing" in parts:
        _say("sealing")
        document["sealing"] = measure_sealing(
            folder, records(9), sizes.seal_records, sizes.commits.rate_per_s, sizes.commits.open_s, sizes.repetitions
        )
    if "reading" in parts:
        _say("reading, beside pyarrow")
        document["reading"] = _in_new_folder(
            folder / "reading", lambda log: measure_rates(log, sizes.read_records, sizes.repetitions)
        )
    if "memory" in parts:
        _say("reading, in how much memory")
        document["memory"] = _in_new_folder(folder / "memory", lambda log: measure_memory(log, sizes.memory_records))
    return {
        **_headline(document),
        **document,
        "sizes": asdict(sizes),
        "note": "logs of `reading` and `memory` were written as segments directly, not sealed from a spool",
        "idle_before": before.as_json(),
        "machine": machine(folder),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commits(folder: Path, durabilities: list[Durability], sizes: CommitSizes) -> dict[str, Any]:
    _say("the bare disk")
    disk = measure_disk(folder)
    commits = {}
    for number, durability in enumerate(durabilities):
        _say(f"commits with durability {durability}")
        log = folder / durability
        commits[durability.value] = asyncio.run(measure_commits(log, records(number), durability, sizes))
        _say(_one_line(commits[durability.value]))
    return {"commits": commits, "disk": disk}


def _in_new_folder(folder: Path, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Large files are removed as soon as they have been measured."""
    folder.mkdir()
    try:
        return measure(folder)
    finally:
        shutil.rmtree(folder)


def _headline(document: dict[str, Any]) -> dict[str, float]:
    """Only what was measured."""
    headline: dict[str, float] = {}
    measured = document.get("commits", {}).get(Durability.FSYNC.value)
    if measured is not None:
        headline["records_per_s"] = measured["closed_loop"][HEADLINE_WAITERS]["records_per_s"]["median"]
        headline["commit_p99_ms_at_half_load"] = measured["open_loop"]["p99_ms"]["median"]
    if "reading" in document:
        ratios = [each["ratio"]["median"] for each in document["reading"]["columns"].values()]
        headline["reader_rate_ratio"] = min(ratios)
    if "memory" in document:
        headline["memory_growth"] = document["memory"]["growth"]
    return headline


def _one_line(figures: dict[str, Any]) -> str:
    closed = (
        f"{waiters} waiting: {each['records_per_s']['median']:,.0f}/s, p99 {each['p99_ms']['median']:.1f} ms"
        for waiters, each in figures["closed_loop"].items()
    )
    opened = figures["open_loop"]
    return "; ".join([*closed, f"{opened['rate_per_s']:.0f}/s open: p99 {opened['p99_ms']['median']:.1f} ms"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
