"""The transformers reward model: agreement with a plain forward pass, batches, failures, cancellation."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import RewardFailed
from bon_server.core.types import CandidateStatus, Message, Prompt
from bon_server.models.reward.pairs import TokenPair, prompt_text
from bon_server.models.reward.transformers import NICENESS, TransformersReward
from tests.waiting import until

CHAT = Prompt(messages=(Message("user", "What is 3 + 4?"),))
LETTERS = "abcdefghij 0123456789"


def completions(count: int, longest: int, seed: int = 0) -> list[str]:
    """Ragged lengths, the empty completion among them."""
    draw = random.Random(seed)
    return ["", *("".join(draw.choices(LETTERS, k=draw.randint(1, longest))) for _ in range(count - 1))]


@pytest.fixture(params=["encoder", "decoder"])
async def reward(request: pytest.FixtureRequest) -> AsyncIterator[TransformersReward]:
    """Both kinds of model, with small batches."""
    directory: Path = request.getfixturevalue(request.param)
    model = await TransformersReward.start(str(directory), "test", RewardConfig(batch_tokens=256))
    yield model
    await model.close()


def plain_rewards(directory: Path, texts: Sequence[str]) -> list[float]:
    """One forward pass for each text, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for text in texts:
        if directory.name.startswith("encoder"):
            inputs = tokenizer(prompt_text(CHAT), text, return_tensors="pt")
        else:
            model.config.pad_token_id = None  # the last token is the last token
            turns = [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": text}]
            rendered = tokenizer.apply_chat_template(turns, tokenize=False)
            inputs = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
            inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            found.append(float(model(**inputs).logits[0, 0]))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
async def test_the_thread_that_scores_gives_way_to_the_engine(reward: TransformersReward) -> None:
    await reward.score(CHAT, "7", {})  # it has begun
    thread_id = reward._thread.native_id
    assert thread_id is not None
    niceness = [os.getpriority(os.PRIO_PROCESS, of) for of in (thread_id, threading.get_native_id())]
    assert niceness[0] == min(19, niceness[1] + NICENESS)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
async def test_rewards_are_those_of_a_plain_forward_pass(
    kind: str, batch_tokens: int, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(kind)
    texts = completions(24, 60)
    model = await TransformersReward.start(str(directory), "test", RewardConfig(batch_tokens=batch_tokens))
    scores = await asyncio.gather(*(model.score(CHAT, text, {}) for text in texts))
    await model.close()
    assert all(score.status is CandidateStatus.SCORED for score in scores)
    expected = plain_rewards(directory, texts)
    assert max(expected) - min(expected) > 0.1
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-4)


async def test_a_sequence_that_ends_in_the_padding_token_is_scored_at_its_end(decoder: Path) -> None:
    model = await TransformersReward.start(str(decoder), "test", RewardConfig())
    short, long = TokenPair([10, 11, 2], None), TokenPair([10, 11, 12, 13, 14, 2, 2], None)
    together = model._classifier.rewards([short, long])
    alone = [model._classifier.rewards([pair])[0] for pair in (short, long)]
    await model.close()
    reference = AutoModelForSequenceClassification.from_pretrained(decoder, dtype=torch.float32).eval()
    reference.config.pad_token_id = None
    expected = [float(reference(torch.tensor([pair.ids])).logits[0, 0].detach()) for pair in (short, long)]
    assert together == pytest.approx(expected, abs=1e-5)
    assert alone == pytest.approx(expected, abs=1e-5)


async def test_tokens_are_counted_without_padding(reward: TransformersReward) -> None:
    short, long = await asyncio.gather(reward.score(CHAT, "a", {}), reward.score(CHAT, "a" * 30, {}))
    assert long.tokens == short.tokens + 29


async def test_what_does_not_fit_is_marked_and_not_cut(encoder: Path) -> None:
    model = await TransformersReward.start(str(encoder), "test", RewardConfig())
    fits, longer = await asyncio.gather(model.score(CHAT, "ab " * 30, {}), model.score(CHAT, "ab " * 300, {}))
    await model.close()
    assert fits.status is CandidateStatus.SCORED
    assert (longer.status, longer.reward) == (CandidateStatus.TOO_LONG, None)


async def test_any_text_can_be_scored(reward: TransformersReward) -> None:
    for text in ("\x00", "שלום", "👩‍👩‍👧 é", "\n\n", "<|im_end|> [SEP]"):
        assert (await reward.score(CHAT, text, {})).status is CandidateStatus.SCORED


async def test_text_that_is_no_unicode_fails_alone(reward: TransformersReward) -> None:
    good, bad = await asyncio.gather(reward.score(CHAT, "a", {}), reward.score(CHAT, "\ud800", {}))
    assert good.status is CandidateStatus.SCORED
    assert bad.status is CandidateStatus.FAILED
    assert bad.error is not None and "tokenising failed" in bad.error


async def test_a_reward_that_is_not_finite_is_marked(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward._classifier, "_forward", lambda pairs: [float("nan"), float("inf"), 1.0][: len(pairs)])
    scores = await asyncio.gather(*(reward.score(CHAT, "ab", {}) for _ in range(3)))
    statuses = {score.status for score in scores}
    assert CandidateStatus.NON_FINITE in statuses
    assert all((score.reward is None) == (score.status is CandidateStatus.NON_FINITE) for score in scores)


async def test_lack_of_memory_halves_the_batch(reward: TransformersReward, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, sizes = reward._classifier._forward, []

    def small_only(pairs: Sequence[TokenPair]) -> list[float]:
        sizes.append(len(pairs))
        if len(pairs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(pairs)

    monkeypatch.setattr(reward._classifier, "_forward", small_only)
    pairs = [reward._classifier.tokenize(CHAT, text) for text in completions(5, 20)]
    assert len(reward._classifier.rewards(pairs)) == 5
    assert sizes == [5, 2, 3, 1, 2]


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: not enough memory: you tried to allocate", "shapes differ"])
async def test_a_failing_forward_pass_fails_its_requests_and_no_others(
    message: str, reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(pairs: Sequence[TokenPair]) -> list[float]:
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(reward._classifier, "_forward", failing)
        with pytest.raises(RewardFailed, match="out of memory" if "memory" in message else "RuntimeError"):
            await reward.score(CHAT, "a", {})
    assert reward.healthy and reward._classifier.device_works()
    assert (await reward.score(CHAT, "a", {})).status is CandidateStatus.SCORED


async def test_a_device_that_computes_no_more_is_said_to_be_broken(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(pairs: Sequence[TokenPair]) -> list[float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(reward._classifier, "_forward", failing)
    monkeypatch.setattr(reward._classifier, "device_works", lambda: False)
    with pytest.raises(RewardFailed, match="RuntimeError"):
        await reward.score(CHAT, "a", {})
    assert not reward.healthy
    with pytest.raises(RewardFailed, match="its device computes no more"):
        await reward.score(CHAT, "a", {})


@pytest.mark.parametrize(
    ("error", "works"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), False),
    ],
)
async def test_lack_of_memory_is_no_broken_device(
    error: Exception, works: bool, reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "ones", refuse)
    assert reward._classifier.device_works() is works


class Gate:
    """Holds forward passes back until opened, and notes how many sequences each has."""

    def __init__(self, reward: TransformersReward, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        forward: Any = reward._classifier._forward

        def held(pairs: Sequence[TokenPair]) -> list[float]:
            self.sizes.append(len(pairs))
            self.entered.set()
            assert self.opened.wait(10)
            rewards: list[float] = forward(pairs)
            return rewards

        patch.setattr(reward._classifier, "_forward", held)


async def test_requests_that_wait_share_a_batch_and_abandoned_ones_are_dropped(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(reward, monkeypatch)
    first = reward.score(CHAT, "a", {})
    assert await asyncio.to_thread(gate.entered.wait, 10)
    waiting = [reward.score(CHAT, "b", {}) for _ in range(5)]
    waiting[1].cancel()
    waiting[3].cancel()
    gate.opened.set()
    scores = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert sum(isinstance(score, asyncio.CancelledError) for score in scores) == 2
    assert gate.sizes == [1, 3]


async def test_what_is_asked_at_once_makes_the_same_batches_every_time(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(reward, monkeypatch)
    gate.opened.set()
    sizes = []
    for _ in range(5):
        gate.sizes.clear()
        await asyncio.gather(*(reward.score(CHAT, text, {}) for text in completions(40, 30)))
        sizes.append(gate.sizes.copy())
    assert sizes == [sizes[0]] * 5 and len(sizes[0]) > 3


async def test_a_forward_pass_that_hangs_is_no_progress_whoever_waits(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(reward, monkeypatch)
    scoring = reward.score(CHAT, "a", {})
    assert await asyncio.to_thread(gate.entered.wait, 10)
    scoring.cancel()
    await until(lambda: reward.engines[0].stalled_s > 0.05)
    gate.opened.set()
    await until(lambda: reward.engines[0].stalled_s == 0.0)


async def test_close_fails_what_waits_and_what_comes_later(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(reward, monkeypatch)
    running = reward.score(CHAT, "a", {})
    assert await asyncio.to_thread(gate.entered.wait, 10)
    waiting = reward.score(CHAT, "b", {})
    closing = asyncio.create_task(reward.close())
    await asyncio.sleep(0)
    later = reward.score(CHAT, "c", {})
    gate.opened.set()
    await closing
    assert (await running).status is CandidateStatus.SCORED
    for refused in (waiting, later):
        with pytest.raises(RewardFailed, match="closed"):
            await refused
    assert not reward.healthy


async def test_a_bug_in_the_thread_leaves_nobody_waiting(
    reward: TransformersReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> list[int]:
        raise KeyError

    monkeypatch.setattr("bon_server.models.reward.transformers.next_batch", bug)
    with pytest.raises(RewardFailed, match="ended"):
        await reward.score(CHAT, "a", {})
    assert not reward.healthy


async def test_scoring_does_not_hold_up_the_event_loop(reward: TransformersReward) -> None:
    scoring = asyncio.gather(*(reward.score(CHAT, text, {}) for text in completions(200, 60)))
    turns = 0
    while not scoring.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
