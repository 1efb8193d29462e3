"""What a round came to: figures of its policy on the held-out prompts, alone and paired with others.

The held-out samples of a round are read from its log and summed up prompt by prompt (`read_held_out`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.core.types import Candidate, FinishReason, LogprobKind, Outcome, Prompt
from bon_server.estimators.clusters import figures
from bon_server.estimators.diversity import distinct_n
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.models.reward.function import FunctionReward

Floats = NDArray[np.float64]

SPLIT, ROUND, MODE = "split", "round", "mode"
"""Names of the tags that rounds put on their requests."""
HELD_OUT, TRAIN = "held-out", "train"
GREEDY, SAMPLED = "greedy", "sampled"

FIGURES = {
    "reward": "mean reward",
    "gold": "mean of the gold function",
    "tokens": "mean length in tokens",
    "truncated": "share that was cut at max_tokens",
    "entropy_nats": "mean of -log p of a sampled token",
    "distinct_1": "distinct-1 of the samples of a prompt, mean over prompts",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
}
"""Each is a ratio of sums over prompts."""


@dataclass(frozen=True, slots=True)
class SampledText:
    """A sampled text, as the policy was given and gave it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The end of text included."""
    temperature: float
    top_p: float


@dataclass(slots=True)
class HeldOut:
    """What is known of one policy on the held-out prompts."""

    sums: dict[str, dict[str, Floats]] = field(default_factory=lambda: {GREEDY: {}, SAMPLED: {}})
    """By mode and prompt hash: (2, figures), what is divided and by what, in the order of `FIGURES`."""
    texts: dict[str, SampledText] = field(default_factory=dict)
    """The first sampled text of each prompt."""


def tags(number: int, split: str, mode: str | None = None) -> dict[str, str]:
    """The tags of the requests of a round; through them no two rounds share a request id."""
    told = {SPLIT: split, ROUND: str(number)}
    return told if mode is None else told | {MODE: mode}


def read_held_out(log: Path, number: int, gold: str | None) -> HeldOut:
    """The held-out samples of a round. Raises `LogError`, and StartupError for a gold function that is none."""
    by_prompt: dict[tuple[str, str], list[Record]] = defaultdict(list)
    with LogReader(log) as reader:
        for record in reader.records():
            mode = record.tags.get(MODE, "")
            answered = record.outcome in (Outcome.OK, Outcome.PARTIAL)
            if answered and tags(number, HELD_OUT, mode).items() <= record.tags.items():
                by_prompt[mode, record.prompt_hash].append(record)
    judged = asyncio.run(_judge(gold, list(by_prompt.values())))
    held_out = HeldOut()
    for ((mode, prompt), records), verdicts in zip(by_prompt.items(), judged, strict=True):
        held_out.sums[mode][prompt] = _sums([one for record in records for one in record.candidates], verdicts)
        if mode == SAMPLED and (text := first_text(records[0])) is not None:
            held_out.texts[prompt] = text
    return held_out


async def _judge(gold: str | None, prompts: list[list[Record]]) -> list[list[float]]:
    """Verdicts on all candidates of each prompt; NaN where there is none."""
    if gold is None:
        return [[np.nan for record in records for _ in record.candidates] for records in prompts]
    function = FunctionReward.from_spec(gold, "gold")

    async def verdict(prompt: Prompt, completion: str, context: Mapping[str, str]) -> float:
        score = await function.score(prompt, completion, context)
        return np.nan if score.reward is None else score.reward

    try:
        return [
            await asyncio.gather(
                *(
                    verdict(record.prompt, one.text, record.reward_context)
                    for record in records
                    for one in record.candidates
                )
            )
            for records in prompts
        ]
    finally:
        await function.close()


def _sums(candidates: list[Candidate], verdicts: list[float]) -> Floats:
    """(2, figures) of one prompt."""
    judged = [verdict for verdict in verdicts if np.isfinite(verdict)]
    rewards = [one.reward for one in candidates if one.reward is not None]
    lengths = [one.completion_tokens for one in candidates]
    known = [one for one in candidates if one.logprob is not None and one.logprob_kind is LogprobKind.SAMPLED]
    surprise = -sum(one.logprob or 0.0 for one in known)
    pairs: list[tuple[float, float]] = [
        (sum(rewards), len(rewards)),
        (sum(judged), len(judged)),
        (sum(lengths), len(lengths)),
        (sum(one.finish_reason is FinishReason.LENGTH for one in candidates), len(candidates)),
        (surprise, sum(one.completion_tokens for one in known)),
    ]
    tokens = [one.token_ids for one in candidates]
    distinct = [distinct_n(tokens, n) for n in (1, 2, 3)]
    pairs += [(share, 1.0) if np.isfinite(share) else (0.0, 0.0) for share in distinct]
    return np.array(pairs, dtype=np.float64).T


def first_text(record: Record) -> SampledText | None:
    """The first candidate's; None where it is not known what the policy read and wrote."""
    first = next(iter(record.candidates), None)
    if first is None or not first.token_ids or not record.prompt_token_ids or record.sampling is None:
        return None
    return SampledText(record.prompt_token_ids, first.token_ids, record.sampling.temperature, record.sampling.top_p)


_NAMES = tuple(FIGURES)
_OF_SEVERAL = ("entropy_nats", "distinct_1", "distinct_2", "distinct_3")
"""What says nothing of a single greedy text."""


def alone(held_out: HeldOut, seed: int) -> dict[str, Any]:
    """{mode: {"prompts", figure: {"mean", "ci"} or None}}; intervals of 95 % by a bootstrap over prompts."""
    return {
        mode: {"prompts": len(sums)} | _told(np.array(list(sums.values())), mode, "mean", seed)
        for mode, sums in held_out.sums.items()
    }


def paired(there: HeldOut, before: HeldOut, seed: int) -> dict[str, Any]:
    """{mode: {"prompts", figure: {"difference", "ci"} or None}}, on the prompts that both have; above 0: it rose."""
    told = {}
    for mode in (GREEDY, SAMPLED):
        shared = sorted(there.sums[mode].keys() & before.sums[mode].keys())
        sums = [np.concatenate([there.sums[mode][one], before.sums[mode][one]]) for one in shared]
        told[mode] = {"prompts": len(shared)} | _told(np.array(sums), mode, "difference", seed)
    return told


def kl_figure(values: list[float], seed: int) -> dict[str, Any] | None:
    """{"mean", "ci", "texts", "infinite"} of KL values, one of a prompt; the mean is None when one is infinite.

    Infinite is the KL of a text in which the policy could say what the first one, cut by top_p, never says.
    """
    if not values:
        return None
    infinite = sum(value == np.inf for value in values)
    mean, between = (
        (None, None)
        if infinite
        else _figure(
            np.stack([values, np.ones(len(values))], axis=1), lambda totals: totals[:, :1] / totals[:, 1:], seed
        )
    )
    return {"mean": mean, "ci": between, "texts": len(values), "infinite": infinite}


def _told(sums: Floats, mode: str, name: str, seed: int) -> dict[str, Any]:
    """sums: (prompts, 2 or 4, figures): divided, by what; and the same of another policy, which is taken away."""
    told: dict[str, Any] = {}
    for column, figure in enumerate(_NAMES):
        if mode == GREEDY and figure in _OF_SEVERAL:
            continue
        usable = sums[(sums[:, 1::2, column] != 0).all(axis=1), :, column] if len(sums) else np.zeros((0, 2))
        mean, between = _figure(usable, _ratio, seed) if len(usable) else (None, None)
        told[figure] = None if mean is None else {name: mean, "ci": between}
    return told


def _ratio(totals: Floats) -> Floats:
    """(…, 1) from (…, 2) or (…, 4)."""
    ratios = totals[:, ::2] / totals[:, 1::2]
    return ratios[:, :1] if ratios.shape[1] == 1 else ratios[:, :1] - ratios[:, 1:]


def _figure(table: Floats, function: Any, seed: int) -> tuple[float | None, list[float] | None]:
    value, between = figures(table, function, seed)
    there = [float(bound) for bound in between[:, 0]] if np.isfinite(between).all() else None
    return (float(value[0]) if np.isfinite(value[0]) else None), there
