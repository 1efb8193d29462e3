"""The log by itself: how many records a second it acknowledges, and after how long.

    python benchmarks/log.py [--quick] [--durability fsync,group,async] [--work FOLDER] [--out FILE]

Progress goes to stderr; the last line of stdout is one JSON document. Headline keys, of durability `fsync`:

- `records_per_s`: acknowledged records a second with 64 writers waiting, 16 candidates of about 60 tokens each.
- `commit_p99_ms_at_half_load`: 99th percentile of the time from when a record is due to its acknowledgement, at 500
  records a second that come at random moments.

Both are medians over repetitions. `commits` has them by durability and by number of waiting writers, with the least and
the most; `disk` says what the same disk does without a log. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules in this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.log_commits import FULL, QUICK, CommitSizes, measure_commits, measure_disk
from benchmarks.log_records import records
from benchmarks.machine import machine, quiet, versions
from bon_server.types import Durability

HEADLINE_WAITERS = "64"


def main() -> None:
    """Measures and prints."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bon-log-", dir=options.work) as folder:
        document = _measure(Path(folder), options.durability, QUICK if options.quick else FULL)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short passes, once: half a minute instead of seven")
    parser.add_argument("--durability", type=_durabilities, default="fsync,group,async", help="which (default: all)")
    parser.add_argument("--work", type=Path, help="folder for the log, on the file system that is to be measured")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    return parser.parse_args()


def _durabilities(names: str) -> list[Durability]:
    return [Durability(name) for name in names.split(",")]


def _measure(folder: Path, durabilities: list[Durability], sizes: CommitSizes) -> dict[str, Any]:
    _say("watching whether the machine is quiet")
    before = quiet()
    _say("the bare disk")
    disk = measure_disk(folder)
    commits = {}
    for number, durability in enumerate(durabilities):
        _say(f"commits with durability {durability}")
        log = folder / durability
        commits[durability.value] = asyncio.run(measure_commits(log, records(number), durability, sizes))
        _say(_one_line(commits[durability.value]))
    return {
        **_headline(commits),
        "commits": commits,
        "disk": disk,
        "sizes": asdict(sizes),
        "idle_before": before.as_json(),
        "machine": machine(folder),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _headline(commits: dict[str, Any]) -> dict[str, float]:
    """Only what was measured."""
    measured = commits.get(Durability.FSYNC.value)
    if measured is None:
        return {}
    return {
        "records_per_s": measured["closed_loop"][HEADLINE_WAITERS]["records_per_s"]["median"],
        "commit_p99_ms_at_half_load": measured["open_loop"]["p99_ms"]["median"],
    }


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
