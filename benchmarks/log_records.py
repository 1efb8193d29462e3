"""Records as a server writes them: 16 candidates of about 60 tokens each, with texts and token ids.

Words and ids follow Zipf's law, as language does, so that what is compressed later compresses about as text would.
Everything comes from a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from bon_server.core.types import (
    Candidate,
    CandidateStatus,
    FinishReason,
    Kind,
    LogprobKind,
    Message,
    ModelRef,
    Outcome,
    PolicyRef,
    Prompt,
    Sampling,
    SelectionReason,
    SelectionRule,
)
from bon_server.log.record import Record, prompt_hash

CANDIDATES = 16
TOKENS = 60
"""Mean length of a candidate; the shortest has 40, the longest 80."""
VOCABULARY = 49_152
DIFFERENT = 1_000
"""Records that are made; more are these with other ids and times. More than a row group of segments has (about 700), or
it would hold some twice and be too small."""
SCATTER = 0x9E3779B97F4A7C15
"""Odd, so that ids are different, and large, so that they come in no order, as random ids do."""
START = datetime(2026, 11, 22, tzinfo=UTC)


def records(seed: int = 0) -> Iterator[Record]:
    """Without end; each has a `request_id` of its own and comes a millisecond after the one before."""
    random = np.random.default_rng(seed)
    words = _words(random)
    made = [_record(random, words) for _ in range(DIFFERENT)]
    number = 0
    while True:
        for one in made:
            yield replace(
                one, request_id=f"{seed:08x}-{number:012x}", created_at=START + timedelta(milliseconds=number)
            )
            number += 1


def _words(random: np.random.Generator) -> list[str]:
    """One for each token id, four letters on average."""
    lengths = random.integers(2, 7, VOCABULARY)
    letters = random.integers(ord("a"), ord("z") + 1, int(lengths.sum())).astype(np.uint8).tobytes().decode("ascii")
    ends = lengths.cumsum()
    return [letters[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _tokens(random: np.random.Generator) -> NDArray[np.int64]:
    return random.zipf(1.2, int(random.integers(TOKENS - 20, TOKENS + 21))) % VOCABULARY


def _record(random: np.random.Generator, words: list[str]) -> Record:
    prompt = Prompt(messages=(Message("user", " ".join(words[token] for token in _tokens(random))),))
    rewards = random.normal(size=CANDIDATES)
    return Record(
        request_id="",
        request_digest=random.bytes(32).hex(),
        kind=Kind.GENERATE,
        outcome=Outcome.OK,
        created_at=START,
        prompt_hash=prompt_hash(prompt, {}),
        prompt_messages=prompt.messages,
        prompt_token_ids=tuple(_tokens(random).tolist()),
        policy=PolicyRef("benchmark-policy", random.bytes(8).hex(), "0" * 64),
        reward_models=(ModelRef("default", "benchmark-reward", "1"),),
        sampling=Sampling(temperature=0.8, max_tokens=TOKENS + 20),
        n=CANDIDATES,
        rule=SelectionRule.ARGMAX,
        selection_reason=SelectionReason.ARGMAX,
        selected_index=int(rewards.argmax()),
        candidates=tuple(_candidate(random, words, index, float(reward)) for index, reward in enumerate(rewards)),
    )


def _candidate(random: np.random.Generator, words: list[str], index: int, reward: float) -> Candidate:
    tokens = tuple(_tokens(random).tolist())
    return Candidate(
        index=index,
        status=CandidateStatus.SCORED,
        text=" ".join(words[token] for token in tokens),
        token_ids=tokens,
        logprob=-float(random.gamma(len(tokens), 0.8)),
        logprob_kind=LogprobKind.SAMPLED,
        finish_reason=FinishReason.STOP,
        completion_tokens=len(tokens),
        seed=int(random.integers(1 << 31)),
        reward=reward,
        policy_revision="abcd",
        sampled_ns=int(random.integers(10**8, 10**9)),
        scored_ns=int(random.integers(10**9, 10**10)),
    )
