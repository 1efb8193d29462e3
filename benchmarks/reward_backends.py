"""Which backend should score: transformers in the server's process, or a vLLM engine of its own.

    python benchmarks/reward_backends.py --policy DIR --reward vllm:DIR [--policy-cpus 0 --reward-cpus 1] [--out FILE]

Samples 16 answers to each question with the policy, and has them scored by one reward model: alone, with short and
with long prompts; overlapped with the sampling, as the server does it; and staged, all samples first. The last line of
stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

if __name__ == "__main__":  # as a script: the checkout comes first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

from benchmarks.comparison import spread
from benchmarks.machine import machine, quiet, versions
from benchmarks.workload import Question, Questions
from bon_server.best_of_n import best_of_n
from bon_server.config import PolicyConfig, RewardConfig
from bon_server.serving.models import RunningPolicy, RunningReward, start_policy, start_reward
from bon_server.types import Message, Prompt, Request, Sampling

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
        """Seconds and tokens for the scores of 16 answers, with nothing else to do."""
        began = time.perf_counter()
        tokens = await self._score(self._fresh_prompt(question, system), texts)
        return time.perf_counter() - began, tokens

    async def sample(self, question: Question) -> list[str]:
        """Texts of 16 answers."""
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
        return [completion.text for completion in await asyncio.gather(*samples)]

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


async def measure(policy: PolicyConfig, reward: RewardConfig, repetitions: int, questions_each: int) -> dict[str, Any]:
    """One reward model on one backend."""
    running_policy = await start_policy(policy)
    running_reward = await start_reward(reward)
    runs, questions = Runs(running_policy, running_reward), Questions(repetitions * questions_each + 1)
    try:
        (first,) = questions.take(1)
        await runs.overlapped(first)
        await runs.staged(first)
        idle = await asyncio.to_thread(quiet)
        figures = [await _repetition(runs, questions.take(questions_each)) for _ in range(repetitions)]
        return {
            "facts": dict(running_reward.facts),
            "idle": idle.as_json(),
            **{name: spread([each[name] for each in figures]) for name in figures[0]},
        }
    finally:
        await running_reward.close()
        await running_policy.close()


async def _repetition(runs: Runs, questions: Sequence[Question]) -> dict[str, float]:
    overlapped, staged = [], []
    for turn, question in enumerate(questions):
        for which in ("overlapped", "staged") if turn % 2 else ("staged", "overlapped"):
            if which == "staged":
                staged.append(await runs.staged(question))
            else:
                overlapped.append(await runs.overlapped(question))
    texts = [await runs.sample(question) for question in questions]
    short = [await runs.alone(question, texts[place], "") for place, question in enumerate(questions)]
    long = [await runs.alone(question, texts[place], LONG_SYSTEM) for place, question in enumerate(questions)]
    return {
        "overlapped_over_staged": sum(each["s"] for each in overlapped) / sum(each["s"] for each in staged),
        "overlapped_s": mean(each["s"] for each in overlapped),
        "staged_s": mean(each["s"] for each in staged),
        "staged_score_s": mean(each["score_s"] for each in staged),
        "tail_share": mean(each["tail_share"] for each in overlapped),
        "overlap_ratio": mean(each["overlap"] for each in overlapped),
        "sampled_tokens": mean(each["tokens"] for each in overlapped),
        "scores_per_s_short": N * len(questions) / sum(seconds for seconds, _ in short),
        "scores_per_s_long": N * len(questions) / sum(seconds for seconds, _ in long),
        "tokens_per_score_short": mean(tokens for _, tokens in short) / N,
        "tokens_per_score_long": mean(tokens for _, tokens in long) / N,
    }


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="directory or hub id")
    parser.add_argument("--reward", required=True, help="as for bon serve: MODEL or vllm:MODEL")
    parser.add_argument("--policy-cpus", default="all")
    parser.add_argument("--reward-cpus", default="all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--questions", type=int, default=3, help="of each repetition")
    parser.add_argument("--out", type=Path, help="also write the document here")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    policy = PolicyConfig(model=given.policy, cpus=given.policy_cpus)
    reward = RewardConfig(models=(given.reward,), cpus=given.reward_cpus)
    document = {
        "reward": "/".join(given.reward.rsplit("/", 1)[-1:]),
        "backend": "vllm" if given.reward.startswith("vllm:") else "transformers",
        "cpus": {"policy": given.policy_cpus, "reward": given.reward_cpus},
        **asyncio.run(measure(policy, reward, given.repetitions, given.questions)),
        "machine": machine(Path()),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


if __name__ == "__main__":
    main()
