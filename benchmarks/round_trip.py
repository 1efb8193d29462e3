"""Does the log make a better policy? Harvest, select, fine-tune, and measure on questions that were never seen.

    python benchmarks/round_trip.py --work DIR [--quick] [--split development] [--out FILE] [--table FILE.md]

Two policies are tuned, on the best of each question's candidates and on a random one of each (`bon harvest`,
`bon select`, `bon train`), for each seed: a seed is the harvest's sampling, the random choice and the order of
training. Base, tuned and control answer the held-out questions greedily and sampled. Everything goes through
`bon serve` and lies in DIR afterwards; a run that was interrupted goes on there. At most an hour on two cores.
`round_trip_report.py` says what is in the document, the last line of stdout.
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
import json
from typing import Any

from benchmarks.arms.answers import Answers, Floats
from benchmarks.arms.commands import Run, end_at_sigterm
from benchmarks.arms.experiment import GREEDY, Experiment, Sizes
from benchmarks.arms.start import add_common, experiment_of, sizes_of
from benchmarks.machine import machine, versions
from benchmarks.round_trip_report import BASE, CONTROL, TUNED, report, table

FULL = Sizes(train=300, held_out=300, n=16, samples=3, seeds=2, kl_questions=60)
QUICK = Sizes(train=24, held_out=20, n=8, samples=2, seeds=2, kl_questions=10)
RULE = "best-per-prompt"


def main() -> None:
    """Measures and prints."""
    options = _options()
    end_at_sigterm()
    sizes = sizes_of(options, QUICK if options.quick else FULL)
    document = measure(experiment_of(options, sizes)) | {"split": options.split}
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.table is not None:
        options.table.write_text(table(document), encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions: checks the script, not the policy")
    add_common(parser)
    return parser.parse_args()


def measure(experiment: Experiment) -> dict[str, Any]:
    """Does what is missing of all parts, and puts the document together."""
    seeds = range(experiment.sizes.seeds)
    greedy, sampled = Run(1, GREEDY), Run(experiment.sizes.samples, experiment.setting.temperature)
    base = experiment.measure("base", experiment.setting.policy, (greedy, sampled), 0)
    answers: dict[str, list[dict[float, Answers]]] = {BASE: [base], TUNED: [], CONTROL: []}
    kl: dict[str, list[Floats]] = {TUNED: [], CONTROL: []}
    for seed in seeds:
        for name, rule in ((TUNED, RULE), (CONTROL, f"random-{RULE}")):
            policy = experiment.tuned(rule, seed)
            part = f"seed-{seed}/{rule}"
            answers[name].append(experiment.measure(part, policy, (greedy, sampled), seed))
            kl[name].append(experiment.kl(part, policy, answers[name][-1][sampled.temperature]))
    by_mode = {
        mode: {name: [one[run.temperature] for one in each] for name, each in answers.items()}
        for mode, run in (("sampled", sampled), ("greedy", greedy))
    }
    work = experiment.work
    return {
        **report(by_mode, kl),
        "about": json.loads((work.folder / "about.json").read_text(encoding="utf-8")),
        "selections": {
            f"seed {seed}, {rule}": work.read(f"seed-{seed}/{rule}/selected")["manifest"]["counts"]
            for seed in seeds
            for rule in (RULE, f"random-{RULE}")
        },
        "seconds": {**work.seconds, "all": work.elapsed_s()},
        "machine": machine(work.folder),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
