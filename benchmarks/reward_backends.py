"""Which backend should score: transformers in the server's process, or a vLLM engine of its own.

    python benchmarks/reward_backends.py --policy DIR --arm all/all/DIR --arm all/all/vllm:DIR --arm 0/1/vllm:DIR

Samples 16 answers to each question with the policy, and has them scored by the reward model of each arm in turn: alone,
after short and after long prompts; overlapped with the sampling, as the server does it; and staged, all samples first.
The last line of stdout is JSON.
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
import time
import warnings
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean
from typing import Any

from benchmarks.comparison import spread
from benchmarks.machine import machine, quiet, versions
from benchmarks.workload import Question, Questions
from bon_server.config.settings import PolicyConfig, RewardConfig
from bon_server.core.best_of_n import best_of_n
from bon_server.core.types import Message, Prompt, Request, Sampling
from bon_server.models.starting import RunningPolicy, RunningReward, start_policy, start_reward

N = 16
MAX_TOKENS = 48
LONG_SYSTEM = "Answer like a patient teacher who checks each step before the next one, and never guesses. " * 10
"""About 180 tokens of a decoder's chat; an instruction as applications have them."""


class Runs:
    """One policy and one reward model, asked in several ways."""

    def __init__(self, policy: RunningPolicy, reward_model: RunningReward) -> None:
        self._policy = policy
        self._reward_model = reward_model
        self._passes = 0

    async def overlapped(self, question: Question) -> dict[str, float]:
        """As the server answers: each candidate is scored while others are sampled."""
        request = await self._request(question)
        stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        answer = await best_of_n(request, self._policy, self._reward_model, stop)
        seconds = time.perf_counter() - began
        if answer.error is not None:
            raise answer.error
        tokens = sum(candidate.completion_tokens for candidate in answer.candidates)
        tail_share = 1 - answer.sample_ns / 1e9 / seconds
        return {"s": seconds, "tail_share": tail_share, "overlap": answer.overlap_ratio, "tokens": float(tokens)}

    async def staged(self, question: Question) -> dict[str, float]:
        """All samples, then all scores, on the same cores."""
        began = time.perf_counter()
        texts = await self.sample(question)
        sampled = time.perf_counter()
        await self._score(self._fresh_prompt(question, ""), texts)
        ended = time.perf_counter()
        return {"s": ended - began, "sample_s": sampled - began, "score_s": ended - sampled}

    async def alone(self, question: Question, texts: Sequence[str], system: str) -> tuple[float, int]:
        """Seconds and tokens for the scores of these answers, with nothing else to do."""
        began = time.perf_counter()
        tokens = await self._score(self._fresh_prompt(question, system), texts)
        return time.perf_counter() - began, tokens

    async def sample(self, question: Question) -> list[str]:
        """Different texts of 16 answers: the server scores equal ones once."""
        request = await self._request(question)
        sampling = request.sampling
        assert sampling is not None
        samples = (
            self._policy.sample(
                f"{self._passes}-{index}",
                request.prompt_token_ids,
                Sampling(temperature=0.8, max_tokens=MAX_TOKENS, seed=question.seed + index),
            )
            for index in range(N)
        )
        return list(dict.fromkeys(completion.text for completion in await asyncio.gather(*samples)))

    async def _score(self, prompt: Prompt, texts: Sequence[str]) -> int:
        scores = await asyncio.gather(*(self._reward_model.score(prompt, text, {}) for text in texts))
        return sum(score.tokens for score in scores)

    async def _request(self, question: Question) -> Request:
        prompt = Prompt(messages=(Message("user", question.prompt),))
        self._passes += 1
        return Request(
            request_id=str(self._passes),
            principal="",
            digest="",
            prompt=prompt,
            prompt_token_ids=(await self._policy.encode(prompt)).token_ids,
            reward_prompt=self._fresh_prompt(question, ""),
            n=N,
            sampling=Sampling(temperature=0.8, max_tokens=MAX_TOKENS, seed=question.seed),
        )

    def _fresh_prompt(self, question: Question, system: str) -> Prompt:
        """Never scored before, so that no pass finds its prompt computed by an earlier one."""
        self._passes += 1
        return Prompt(messages=(Message("system", f"{self._passes}. {system}"), Message("user", question.prompt)))


@dataclass(frozen=True)
class Arm:
    """One reward model on one backend, and the CPUs that it and the policy compute on."""

    policy_cpus: str
    reward_cpus: str
    reward: str
    """As for `bon serve --reward`."""

    @classmethod
    def parse(cls, text: str) -> Arm:
        """`all/all/vllm:DIR`: policy's CPUs, reward model's CPUs, reward model."""
        return cls(*text.split("/", 2))

    @property
    def name(self) -> str:
        """Without the place of the model."""
        backend = "vllm" if self.reward.startswith("vllm:") else "transformers"
        return f"{Path(self.reward).name} {backend} policy:{self.policy_cpus} reward:{self.reward_cpus}"


async def measure(policy: str, arms: Sequence[Arm], repetitions: int, questions_each: int) -> dict[str, Any]:
    """All arms loaded beside each other, one asked at a time, each question by all of them in turn."""
    async with AsyncExitStack() as started:
        policies: dict[str, RunningPolicy] = {}
        for cpus in dict.fromkeys(arm.policy_cpus for arm in arms):
            policies[cpus] = await start_policy(PolicyConfig(model=policy, cpus=cpus))
            started.push_async_callback(policies[cpus].close)
        runs: dict[str, Runs] = {}
        for arm in arms:
            reward_model = await start_reward(RewardConfig(models=(arm.reward,), cpus=arm.reward_cpus))
            started.push_async_callback(reward_model.close)
            runs[arm.name] = Runs(policies[arm.policy_cpus], reward_model)
        questions = Questions(repetitions * questions_each + 1)
        (first,) = questions.take(1)
        for each in runs.values():
            await each.overlapped(first)
            await each.staged(first)
        idle = await asyncio.to_thread(quiet)
        figures = [await _repetition(runs, questions.take(questions_each)) for _ in range(repetitions)]
    return {"idle": idle.as_json(), "arms": {name: _spreads([each[name] for each in figures]) for name in runs}}


async def _repetition(runs: dict[str, Runs], questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    passes: dict[str, list[Pass]] = {name: [] for name in runs}
    names = list(runs)
    for turn, question in enumerate(questions):
        texts = await runs[names[0]].sample(question)
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            one = await _one(runs[name], question, texts, overlapped_first=turn % 2 == 0)
            passes[name].append(one)
            print(f"{question.seed} {name}: {one}", file=sys.stderr, flush=True)  # noqa: T201
    first = passes[names[0]]
    return {name: _figures(each, first) for name, each in passes.items()}


@dataclass(frozen=True)
class Pass:
    """One question in one arm."""

    overlapped: dict[str, float]
    staged: dict[str, float]
    texts: int
    """Scored for each of the next two."""
    short_s: float
    long_s: float
    long_tokens: int


async def _one(runs: Runs, question: Question, texts: Sequence[str], *, overlapped_first: bool) -> Pass:
    overlapped = await runs.overlapped(question) if overlapped_first else None
    staged = await runs.staged(question)
    short_s, _ = await runs.alone(question, texts, "")
    long_s, long_tokens = await runs.alone(question, texts, LONG_SYSTEM)
    return Pass(overlapped or await runs.overlapped(question), staged, len(texts), short_s, long_s, long_tokens)


def _figures(passes: Sequence[Pass], first: Sequence[Pass]) -> dict[str, float]:
    """`..._over_first`: times divided by those of the first arm for the same questions."""
    overlapped_s = sum(each.overlapped["s"] for each in passes)
    return {
        "overlapped_over_staged": overlapped_s / sum(each.staged["s"] for each in passes),
        "overlapped_over_first": overlapped_s / sum(each.overlapped["s"] for each in first),
        "overlapped_s": mean(each.overlapped["s"] for each in passes),
        "staged_score_s": mean(each.staged["score_s"] for each in passes),
        "tail_share": mean(each.overlapped["tail_share"] for each in passes),
        "overlap_ratio": mean(each.overlapped["overlap"] for each in passes),
        "sampled_tokens": mean(each.overlapped["tokens"] for each in passes),
        "scores_per_s_short": sum(each.texts for each in passes) / sum(each.short_s for each in passes),
        "scores_per_s_long": sum(each.texts for each in passes) / sum(each.long_s for each in passes),
        "tokens_per_score_long": sum(each.long_tokens for each in passes) / sum(each.texts for each in passes),
    }


def _spreads(figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([each[name] for each in figures]) for name in figures[0]}


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="directory or hub id")
    parser.add_argument("--arm", required=True, action="append", help="POLICY_CPUS/REWARD_CPUS/REWARD, may be repeated")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--questions", type=int, default=3, help="of each repetition")
    parser.add_argument("--out", type=Path, help="also write the document here")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    document = {
        **asyncio.run(measure(given.policy, [Arm.parse(arm) for arm in given.arm], given.repetitions, given.questions)),
        "repetitions": given.repetitions,
        "questions_each": given.questions,
        "machine": machine(Path()),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


if __name__ == "__main__":
    main()
