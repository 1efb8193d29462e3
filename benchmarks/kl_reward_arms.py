"""The arms of `kl_reward.py`: how each policy is made, and what is measured of it, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.answers import Answers
from benchmarks.arms.commands import Run
from benchmarks.arms.experiment import Experiment
from benchmarks.arms.lanes import in_lanes
from benchmarks.arms.setting import STRONG
from bon_server.estimators.kl_best_of_n import kl_exact_plugin
from bon_server.estimators.order_statistics import reward_at_k
from bon_server.log.read.reader import LogReader

Floats = NDArray[np.float64]

RULES = {
    "best per prompt": "best-per-prompt",
    "random per prompt": "random-best-per-prompt",
    "top-k overall": "top-k-overall",
    "random-k overall": "random-top-k-overall",
    "DPO": "pairs",
}
CONTROLS = {"best per prompt": "random per prompt", "top-k overall": "random-k overall"}
BASE = "base"
TUNED_KL = "full-vocabulary"


@dataclass(frozen=True)
class Arm:
    """One way to answer, with P questions."""

    name: str
    kind: str
    """`base`, `best-of-n`, `sft`, `control`, `dpo` or `rl`: its shape in the figure."""
    proxy_model: str
    """Which reward model selected, trained, and is the proxy here."""
    proxy: Sequence[Floats]
    """(P,) or (P, n) of each seed."""
    gold: Sequence[Floats]
    kl: Sequence[Floats]
    """(P,) of each seed, nats; NaN where it was not computed."""
    kl_method: str | None
    """None: the base itself."""
    answer_tokens: float
    """Sampled for one answer."""
    train_tokens: float = 0.0
    """Sampled for training, and read in it, prompts included; mean over seeds."""
    control: str | None = None
    """Name of the arm that differs in the choice alone."""


def all_arms(experiment: Experiment, rl_seeds: Sequence[int], lanes: int) -> list[Arm]:
    """Does what is missing of all parts, those of tuned policies in `lanes`. Arms with the proxy `strong` first."""
    base = experiment.measure(BASE, experiment.setting.policy, (_run(experiment, experiment.sizes.n),), 0)
    answers = base[experiment.setting.temperature]
    in_lanes(lanes, _lane, experiment, rl_seeds)
    arms: list[Arm] = []
    for proxy in experiment.rewards:
        arms += best_of_n(answers, proxy)
        if proxy == STRONG:
            arms += [_tuned(experiment, name, range(experiment.sizes.seeds)) for name in RULES]
        arms += _online(experiment, proxy, rl_seeds)
    return arms


def _lane(experiment: Experiment, rl_seeds: Sequence[int], lane: int, lanes: int) -> None:
    """Does the parts of every `lanes`-th seed, and those of every `lanes`-th run of online reinforcement learning."""
    for name in RULES:
        for seed in range(experiment.sizes.seeds)[lane::lanes]:
            _tuned(experiment, name, [seed])
    runs = [(proxy, seed) for proxy in experiment.rewards for seed in rl_seeds]
    for proxy, seed in runs[lane::lanes]:
        list(_online(experiment, proxy, [seed]))


def best_of_n(answers: Answers, proxy: str) -> Iterator[Arm]:
    """The base, and the best of n of its answers for each n, all from one sample of N >= n."""
    ranks = answers.rewards[proxy]
    by_reward, by_gold = reward_at_k(ranks), reward_at_k(ranks, answers.gold)
    kl = kl_exact_plugin(ranks)
    for index in range(ranks.shape[1]):
        n = index + 1
        yield Arm(
            BASE if n == 1 else f"best-of-{n}",
            BASE if n == 1 else "best-of-n",
            proxy,
            [by_reward[:, index]],
            [by_gold[:, index]],
            [kl[:, index]],
            None if n == 1 else "exact-plugin",
            n * float(answers.tokens.mean()),
        )


def _run(experiment: Experiment, n: int) -> Run:
    return Run(n, experiment.setting.temperature)


def _tuned(experiment: Experiment, name: str, seeds: Sequence[int]) -> Arm:
    """A policy of each seed, tuned on what a rule chose."""
    rule = RULES[name]
    policies = [(f"seed-{seed}/{rule}", experiment.tuned(rule, seed), seed) for seed in seeds]
    tokens = [
        sampled_tokens(experiment.harvest(seed))
        + experiment.work.read(f"seed-{seed}/{rule}/policy")["training"]["metrics"]["tokens"]
        for seed in seeds
    ]
    kind = "dpo" if name == "DPO" else "control" if name in CONTROLS.values() else "sft"
    return _measured(experiment, name, kind, STRONG, policies, float(np.mean(tokens)))


def _online(experiment: Experiment, proxy: str, seeds: Sequence[int]) -> Iterator[Arm]:
    """One arm for each stop of the run."""
    runs = {seed: experiment.online_rl(proxy, seed) for seed in seeds}
    for stop in experiment.recipe.rl_stops:
        policies = [(f"seed-{seed}/rl-{proxy}/step-{stop}", run[stop], seed) for seed, run in runs.items()]
        told = [experiment.work.read(f"seed-{seed}/rl-{proxy}/run")["stops"][str(stop)] for seed in seeds]
        tokens = float(np.mean([each["sampled_tokens"] + each["trained_tokens"] for each in told]))
        yield _measured(experiment, f"GRPO, {stop} steps", "rl", proxy, policies, tokens)


def _measured(
    experiment: Experiment,
    name: str,
    kind: str,
    proxy: str,
    policies: Sequence[tuple[str, Path, int]],
    train_tokens: float,
) -> Arm:
    run = _run(experiment, experiment.sizes.samples)
    answers = [experiment.measure(part, policy, (run,), seed)[run.temperature] for part, policy, seed in policies]
    return Arm(
        name,
        kind,
        proxy,
        [one.rewards[proxy] for one in answers],
        [one.gold for one in answers],
        [experiment.kl(part, policy, one) for (part, policy, _), one in zip(policies, answers, strict=True)],
        TUNED_KL,
        float(np.mean([one.tokens.mean() for one in answers])),
        train_tokens,
        CONTROLS.get(name),
    )


def sampled_tokens(log: Path) -> int:
    """Of all candidates of a log."""
    with LogReader(log) as reader:
        return sum(one.completion_tokens for record in reader.records() for one in record.candidates)
