"""Best-of-N side by side: the bare engine, our server, and `vllm serve` with a reward process.

    python benchmarks/serving.py [--quick] [--parts synthetic,engine,server,http,overlap] [--policy M --reward R]

Progress goes to stderr; the last line of stdout is one JSON document, whose keys `report.py` explains. Sampling is the
same everywhere, with seeds, so that the stacks sample almost equal lengths. Nothing else should run on the machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# As a script: Python then looks in this folder first, where it would find `select.py`, and children in none of ours.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

import argparse
import asyncio
import json
import signal
import tempfile
from dataclasses import asdict, replace
from typing import Any

from benchmarks.machine import machine, quiet, versions
from benchmarks.models import Models, demo_models
from benchmarks.overlap import measure_overlap
from benchmarks.report import report
from benchmarks.side_by_side import measure
from benchmarks.sizes import FULL, QUICK, Sizes
from benchmarks.synthetic_rate import synthetic_rates
from benchmarks.workload import Sampling

STACKS = ("engine", "server", "http")
PARTS = ("synthetic", *STACKS, "overlap")
SYNTHETIC_FOLDER = "synthetic"
STACKS_FOLDER = "stacks"
OVERLAP_FOLDER = "overlap"


def main() -> None:
    """Measures and prints."""
    options = _options()
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, questions={each: sizes.questions[each] for each in options.in_flight or sizes.questions})
    with tempfile.TemporaryDirectory(prefix="bon-serving-", dir=options.work) as folder:
        for part in (SYNTHETIC_FOLDER, STACKS_FOLDER, OVERLAP_FOLDER):
            (Path(folder) / part).mkdir()
        document = asyncio.run(_measure(options, sizes, Path(folder)))
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions: 10 minutes instead of 45")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--in-flight", type=int, nargs="+", choices=FULL.questions, help="questions (default: all)")
    parser.add_argument("--policy", help="directory or hub id (default: the demo's, built when missing)")
    parser.add_argument("--reward", help="directory or hub id (default: the demo's, built when missing)")
    parser.add_argument("--models", type=Path, default=Path(".demo/models"), help="where the demo's models are kept")
    parser.add_argument("--dtype", default="auto", help="of the policy, in every stack")
    parser.add_argument("--gpu-memory-share", type=float, default=0.28, help="GPU: share for each of three engines")
    parser.add_argument("--work", type=Path, help="folder for the log, on the file system that is to be measured")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if options.quick and set(options.in_flight or ()) - set(QUICK.questions):
        parser.error(
            f"--in-flight {max(options.in_flight)} with --quick: allowed are {', '.join(map(str, QUICK.questions))}"
        )
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts {','.join(sorted(unknown))}: allowed are {', '.join(PARTS)}")
    return options


async def _measure(options: argparse.Namespace, sizes: Sizes, folder: Path) -> dict[str, Any]:
    _end_at_sigterm()
    stacks = rates = models = overlap = None
    at_start = await asyncio.to_thread(quiet)
    sampling = Sampling()
    if "synthetic" in options.parts:
        rates = await synthetic_rates(folder / SYNTHETIC_FOLDER, sizes.repetitions, sizes.synthetic_s)
    if options.parts != ["synthetic"]:
        models = _models(options)
    if models is not None and "overlap" in options.parts:
        overlap = await measure_overlap(models, sizes.overlap_repetitions, folder / OVERLAP_FOLDER)
    if models is not None and set(STACKS) & set(options.parts):
        stacks = await measure(models, sampling, sizes, options.parts, folder / STACKS_FOLDER)
    return {
        **report(at_start, stacks, rates, overlap),
        "models": None if models is None else models.as_json(),
        "sampling": asdict(sampling),
        "sizes": asdict(sizes),
        "machine": machine(folder),
        "versions": versions(),
    }


def _end_at_sigterm() -> None:
    """The first SIGTERM ends what was started; more of them (`timeout` sends two) must not interrupt that."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def end() -> None:
        print("SIGTERM: ending what was started", file=sys.stderr, flush=True)  # noqa: T201
        loop.add_signal_handler(signal.SIGTERM, lambda: None)
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)


def _models(options: argparse.Namespace) -> Models:
    policy, reward = options.policy, options.reward
    if policy is None or reward is None:
        demo_policy, demo_reward = demo_models(options.models)
        policy, reward = policy or demo_policy, reward or demo_reward
    return Models(policy, reward, options.dtype, options.gpu_memory_utilization)


if __name__ == "__main__":
    main()
