"""Reward and accuracy against KL: best-of-n, rejection sampling, DPO and online RL on the same questions.

    python benchmarks/kl_reward.py --work DIR [--size quick|small|full] [--out FILE] [--table FILE.md] [--plot FILE.svg]
    python benchmarks/kl_reward.py --work DIR --policy M --reward R --train-prompts FILE --held-out-prompts FILE \\
        --gold MODULE:FUNCTION

The proxy is the reward model that selects and trains, gold the exact judge. All arms answer the same held-out questions
at the same temperature; KL is to the base policy at that temperature. Then best-of-n and online RL again with a
deliberately weak proxy, trained on few labels, to see over-optimisation (Gao et al. 2022). Small: some 85 minutes on
two cores. What an interrupted run did lies in DIR, and the same command goes on there. `kl_reward_report.py` says what
is in the document, the last line of stdout; docs/kl-reward.md how to read it, and how to run it on a GPU.
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
from dataclasses import replace

from benchmarks.arms.commands import end_at_sigterm
from benchmarks.arms.experiment import Experiment, Sizes
from benchmarks.arms.lanes import check_lanes, usual_lanes
from benchmarks.arms.setting import STRONG, WEAK, told
from benchmarks.arms.start import add_common, experiment_of, sizes_of
from benchmarks.arms.weak_reward import weak_reward
from benchmarks.kl_reward_arms import all_arms
from benchmarks.kl_reward_plot import plot
from benchmarks.kl_reward_report import report, table
from benchmarks.machine import machine, versions

SIZES = {
    "quick": Sizes(train=24, held_out=20, n=8, samples=2, seeds=2, kl_questions=10),
    "small": Sizes(train=112, held_out=120, n=16, samples=2, seeds=2, kl_questions=40),
    "full": Sizes(train=600, held_out=400, n=16, samples=8, seeds=4, kl_questions=400),
}
QUICK_RECIPE = ["rl_stops=1,2,3", "rl_batch=8", "rl_group=4"]


def main() -> None:
    """Measures and prints."""
    options = _options()
    end_at_sigterm()
    experiment = _with_weak_reward(experiment_of(options, options.sizes), options)
    arms = all_arms(experiment, range(options.rl_seeds), options.lanes)
    work = experiment.work
    document = {
        **report(arms),
        "split": options.split,
        "size": options.size,
        "reward_models": {name: told(model) for name, model in experiment.rewards.items()},
        "about": json.loads((work.folder / "about.json").read_text(encoding="utf-8")),
        "lanes": options.lanes,
        "seconds": {**work.seconds, "all": work.elapsed_s()},
        "machine": machine(work.folder),
        "versions": versions(),
    }
    for file, text in ((options.out, json.dumps(document, indent=2) + "\n"), (options.table, table(document))):
        if file is not None:
            file.write_text(text, encoding="utf-8")
    if options.plot is not None:
        plot(document, options.plot)
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="quick: minutes; full: a day or a GPU")
    parser.add_argument("--quick", action="store_true", help="as --size quick")
    parser.add_argument("--rl-seeds", type=int, help="of online RL (default: 1, with --size full all)")
    parser.add_argument("--lanes", type=int, help="parts at a time, each on its CPUs (default: 2; on a GPU 1)")
    parser.add_argument("--weak-reward", help="a weaker reward model (default: the demo's, trained on few labels)")
    parser.add_argument("--plot", type=Path, help="draw the figure into this file (.svg or .png)")
    add_common(parser)
    options = parser.parse_args()
    if options.quick or options.size == "quick":
        options.size, options.recipe = "quick", [*QUICK_RECIPE, *options.recipe]
    options.sizes = sizes_of(options, SIZES[options.size])
    if options.lanes is None:
        options.lanes = usual_lanes()
    check_lanes(options.lanes)
    if options.rl_seeds is None:
        options.rl_seeds = options.sizes.seeds if options.size == "full" else 1
    return options


def _with_weak_reward(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """Held-out answers are scored by both; with models of your own and no second one, by the one alone."""
    if options.weak_reward is not None:
        weak = options.weak_reward
    elif options.policy is None:
        weak = str(weak_reward(experiment, quick=options.size == "quick"))
    else:
        return experiment
    return replace(experiment, rewards={STRONG: experiment.setting.reward, WEAK: weak})


if __name__ == "__main__":
    main()
