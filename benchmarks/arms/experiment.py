"""The steps that all arms are made of, each done once and kept: harvest, policy, answers, KL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.answers import Answers, read_answers
from benchmarks.arms.commands import Run, bon, harvest, python
from benchmarks.arms.recipe import Recipe
from benchmarks.arms.setting import Setting, gold
from benchmarks.arms.work import Document, Work
from bon_server.loop.rounds.kl import kl_of_texts

Floats = NDArray[np.float64]
GREEDY = 0.0
DPO_RULE = "pairs"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    train: int
    """Questions that are harvested."""
    held_out: int
    """Questions that policies are measured on."""
    n: int
    """Candidates of a harvested question, and of a held-out one for best-of-n."""
    samples: int
    """Answers of a tuned policy to a held-out question."""
    seeds: int
    """Of harvest, random choice and training together."""
    kl_questions: int
    """Held-out questions, the first ones, along whose first answers KL is computed."""


@dataclass(frozen=True)
class Experiment:
    """One work folder with what decides its parts. The prompts lie in `work.folder`."""

    work: Work
    setting: Setting
    recipe: Recipe
    sizes: Sizes
    rewards: Mapping[str, str]
    """Reward models that score held-out answers, by name; the harvest is scored by `setting.reward` alone."""

    @property
    def train_prompts(self) -> Path:
        """Lines to harvest."""
        return self.work.folder / "train.jsonl"

    @property
    def held_out_prompts(self) -> Path:
        """Lines to measure on."""
        return self.work.folder / "held-out.jsonl"

    def harvest(self, seed: int) -> Path:
        """The log of n scored candidates of each training question."""
        run = Run(self.sizes.n, self.setting.temperature)

        def do(folder: Path) -> Document:
            rewards = {"default": self.setting.reward}
            return harvest(self.setting, self.setting.policy, rewards, self.train_prompts, folder, [run], 100 + seed)

        return self.work.part(f"seed-{seed}/harvest", do) / "log"

    def tuned(self, rule: str, seed: int) -> Path:
        """The policy fine-tuned on what a rule chooses from the harvest: by preferences for `pairs`, else by SFT."""
        log = self.harvest(seed)
        data, name = self._selected(log, rule, seed), f"seed-{seed}/{rule}/policy"

        def do(folder: Path) -> Document:
            return {"training": bon("train", *self._train_arguments(rule, data, folder / "model", seed))}

        return self.work.part(name, do) / "model"

    def _selected(self, log: Path, rule: str, seed: int) -> Path:
        arguments = ["--log", str(log), "--rule", rule, "--seed", str(seed)]
        arguments += ["--format", "trl-dpo" if rule.endswith(DPO_RULE) else "trl-tokens"]
        if rule.endswith("top-k-overall"):
            arguments += ["--k", str(self.sizes.train)]  # as many rows as best-per-prompt has

        def do(folder: Path) -> Document:
            return {"manifest": bon("select", *arguments, "--out", str(folder / "data"))}

        return self.work.part(f"seed-{seed}/{rule}/selected", do) / "data"

    def _train_arguments(self, rule: str, data: Path, out: Path, seed: int) -> list[str]:
        recipe = self.recipe
        arguments = ["--data", str(data), "--policy", self.setting.policy, "--out", str(out), "--seed", str(seed)]
        arguments += ["--lora-rank", str(recipe.rank), "--batch-size", str(recipe.batch_size)]
        if rule.endswith(DPO_RULE):
            arguments += ["--method", "dpo", "--learning-rate", str(recipe.dpo_learning_rate)]
            return [*arguments, "--epochs", str(recipe.dpo_epochs), "--beta", str(recipe.dpo_beta)]
        return [
            *arguments,
            *("--method", "sft", "--learning-rate", str(recipe.sft_learning_rate), "--epochs", str(recipe.sft_epochs)),
        ]

    def online_rl(self, reward: str, seed: int) -> dict[int, Path]:
        """The policies at each stop of a run of online reinforcement learning, by steps."""
        recipe, setting = self.recipe, self.setting
        stops = ",".join(map(str, recipe.rl_stops))

        def do(folder: Path) -> Document:
            said = python(
                "benchmarks.arms.online_rl",
                *("--policy", setting.policy, "--reward", self.rewards[reward], "--prompts", str(self.train_prompts)),
                *("--out", str(folder), "--stops", stops, "--seed", str(seed), "--rank", str(recipe.rank)),
                *("--group", str(recipe.rl_group), "--batch", str(recipe.rl_batch)),
                *("--learning-rate", str(recipe.rl_learning_rate)),
                *("--temperature", str(setting.temperature), "--max-tokens", str(setting.max_tokens)),
            )
            document: Document = json.loads(said.splitlines()[-1])
            return document

        folder = self.work.part(f"seed-{seed}/rl-{reward}/run", do)
        return {stop: folder / f"step-{stop}" for stop in recipe.rl_stops}

    def measure(self, name: str, policy: str | Path, runs: tuple[Run, ...], seed: int) -> dict[float, Answers]:
        """Answers to the held-out questions, by temperature."""

        def do(folder: Path) -> Document:
            return harvest(self.setting, str(policy), self.rewards, self.held_out_prompts, folder, runs, 200 + seed)

        log = self.work.part(f"{name}/answers", do) / "log"
        judge, names = gold(self.setting.gold), tuple(self.rewards)
        return {run.temperature: read_answers(log, run.temperature, judge, names) for run in runs}

    def kl(self, name: str, policy: str | Path, answers: Answers) -> Floats:
        """(P,) KL to the base along the first answer of each of the first `kl_questions`, NaN for the others."""
        texts = answers.first[: self.sizes.kl_questions]

        def do(folder: Path) -> Document:
            found = kl_of_texts(str(policy), self.setting.policy, texts, lambda _: None, in_32_bits=True)
            return {"kl_nats": [round(one, 6) for one in found]}

        self.work.part(f"{name}/kl", do)
        result = np.full(len(answers.first), np.nan)
        result[: len(texts)] = self.work.read(f"{name}/kl")["kl_nats"]
        return result
