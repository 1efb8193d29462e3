"""Reward models on a real pooling engine: the rewards of transformers, shared prompts, what is withdrawn, death."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import socketserver
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
import torch
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY
from transformers import AutoModelForSequenceClassification

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import Unavailable
from bon_server.core.types import CandidateStatus, Message, Prompt, Score
from bon_server.models.reward.ensemble import EnsembleReward
from bon_server.models.reward.function import FunctionReward
from bon_server.models.reward.pairs import TokenPair
from bon_server.models.reward.transformers import TransformersReward
from bon_server.models.starting import RunningReward
from bon_server.serving.lifecycle.health import FOLLOW_S
from bon_server.serving.lifecycle.server import Server
from tests.conftest import synthetic_config
from tests.serving.running import question, refusal
from tests.waiting import until

if TYPE_CHECKING:
    from bon_server.models.vllm.reward import VllmReward

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CHAT = Prompt(messages=(Message("user", "What is 3 + 4?"),))
LONG_CHAT = Prompt(messages=(Message("system", "Be brief. " * 40), Message("user", "What is 3 + 4?")))
LETTERS = "abcdefghij 0123456789"


def completions(count: int, longest: int) -> list[str]:
    """Ragged lengths, the empty completion among them."""
    draw = random.Random(0)
    return ["", *("".join(draw.choices(LETTERS, k=draw.randint(1, longest))) for _ in range(count - 1))]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_decoder(decoder: Path) -> AsyncIterator[VllmReward]:
    """A decoder on its engine, in little memory and small steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM, while it is imported
        from bon_server.models.vllm.reward import VllmReward
    config = RewardConfig(kv_cache_memory_bytes=32 << 20, batch_tokens=512)
    model = await VllmReward.start(str(decoder), "test", config)
    yield model
    await model.close()


async def scores(model: RunningReward, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
    return await asyncio.gather(*(model.score(prompt, text, {}) for text in texts))


async def by_transformers(directory: Path, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
    model = await TransformersReward.start(str(directory), "test", RewardConfig())
    found = await scores(model, prompt, texts)
    await model.close()
    return found


def assert_same(found: Sequence[Score], expected: Sequence[Score]) -> None:
    rewards = [score.reward for score in expected if score.reward is not None]
    assert max(rewards) - min(rewards) > 0.1
    assert [score.reward for score in found] == pytest.approx([score.reward for score in expected], abs=1e-4)
    assert [(score.status, score.tokens) for score in found] == [(score.status, score.tokens) for score in expected]


@pytest.mark.parametrize("prompt", [CHAT, LONG_CHAT, Prompt(text="Once upon")], ids=["chat", "long", "text"])
async def test_a_decoder_gives_the_rewards_of_transformers(
    prompt: Prompt, on_decoder: VllmReward, decoder: Path
) -> None:
    texts = completions(40, 90)
    expected = await by_transformers(decoder, prompt, texts)
    assert_same(await scores(on_decoder, prompt, texts), expected)
    backwards = await scores(on_decoder, prompt, texts[::-1])  # by now the prompt comes out of the cache
    assert_same(backwards[::-1], expected)
    one_by_one = [await on_decoder.score(prompt, text, {}) for text in texts[:6]]
    assert_same(one_by_one, expected[:6])


async def test_a_sequence_that_ends_in_the_padding_token_is_scored_at_its_end(
    on_decoder: VllmReward, decoder: Path
) -> None:
    reference: Any = AutoModelForSequenceClassification.from_pretrained(decoder, dtype=torch.float32).eval()
    reference.config.pad_token_id = None
    sequences = [[10, 11, 2], [10, 11, 12, 13, 14, 2, 2], [2]]
    expected = [float(reference(torch.tensor([ids])).logits[0, 0].detach()) for ids in sequences]
    found = await asyncio.gather(*(on_decoder._logit(TokenPair(ids, None)) for ids in sequences))
    assert found == pytest.approx(expected, abs=1e-4)


async def test_what_fills_the_context_is_scored_and_what_does_not_fit_is_marked(
    on_decoder: VllmReward, decoder: Path
) -> None:
    (empty,) = await scores(on_decoder, CHAT, [""])
    fits = "a" * (2048 - empty.tokens)
    found = await scores(on_decoder, CHAT, [fits, fits + "a", "a"])
    assert_same(found, await by_transformers(decoder, CHAT, [fits, fits + "a", "a"]))
    assert [score.status for score in found][1] is CandidateStatus.TOO_LONG
    assert found[0].tokens == 2048


async def test_texts_that_cannot_be_read_fail_alone(on_decoder: VllmReward) -> None:
    found = await scores(on_decoder, CHAT, ["\ud800", "\x00", "שלום", "<|im_end|>"])
    assert [score.status.value for score in found] == ["failed", "scored", "scored", "scored"]
    assert "tokenising failed" in (found[0].error or "")


async def test_a_score_that_is_withdrawn_leaves_the_engine(on_decoder: VllmReward) -> None:
    waiting = [asyncio.ensure_future(on_decoder.score(CHAT, "ab" * 900 + text, {})) for text in completions(64, 50)]
    await until(lambda: on_decoder.unfinished_requests() > 30)
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    assert on_decoder.unfinished_requests() == 0
    assert on_decoder.healthy
    assert (await on_decoder.score(CHAT, "a", {})).status is CandidateStatus.SCORED


async def test_a_reward_that_is_not_finite_is_marked(on_decoder: VllmReward, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nan(pair: TokenPair) -> float:
        return float("nan")

    monkeypatch.setattr(on_decoder, "_logit", nan)
    score = await on_decoder.score(CHAT, "a", {})
    assert (score.status, score.reward) == (CandidateStatus.NON_FINITE, None)
    assert score.tokens > 0


async def test_an_ensemble_with_a_function(on_decoder: VllmReward) -> None:
    length = FunctionReward.from_spec("function:tests.models.reward.odd_rewards:plain", "length")
    both = EnsembleReward({"model": on_decoder, "length": length}, RewardConfig())
    alone, together = await on_decoder.score(CHAT, "abc", {}), await both.score(CHAT, "abc", {})
    assert alone.reward is not None
    assert together.rewards == {"model": pytest.approx(alone.reward, abs=1e-4), "length": 3.0}
    assert together.reward == pytest.approx((alone.reward + 3.0) / 2, abs=1e-4)
    assert together.tokens == alone.tokens
    assert both.healthy
    await length.close()


async def test_what_the_banner_says(on_decoder: VllmReward) -> None:
    facts = on_decoder.facts
    assert (facts["engine"], facts["dtype"], facts["kind"]) == ("vllm", "float32", "decoder")
    assert int(facts["kv_cache_tokens"]) > int(facts["max_model_len"]) == 2048


async def test_engines_register_no_metrics(on_decoder: VllmReward) -> None:
    """A second engine would take those of the first away."""
    assert on_decoder.healthy
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("vllm")]


async def test_a_server_scores_with_an_encoder_until_its_engine_dies(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine for all of this: starting one takes long."""
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
    earlier = set(multiprocessing.active_children())
    server = await Server.start(synthetic_config(tmp_path / "log", **{"reward.models": [f"vllm:{encoder}"]}))
    try:
        (process,) = set(multiprocessing.active_children()) - earlier
        await check_encoder(server.reward_model, encoder)
        await check_death(server, process.pid or 0)
    finally:
        await server.drain(0)
        await asyncio.wait_for(server.stop(), 20)
    with pytest.raises(Unavailable, match="closed"):
        await server.reward_model.score(CHAT, "a", {})
    assert not set(multiprocessing.active_children()) - earlier


async def check_death(server: Server, engine_pid: int) -> None:
    """Callers, health and the server's own watch learn of it."""
    request = question(n=4, sampling=pb.SamplingParams(seed=0, max_tokens=8))
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = BestOfNServiceStub(channel)
        answer = await stub.Generate(request)
        assert answer.n_scored == 4
        assert answer.usage.reward_model_tokens > 0
        os.kill(engine_pid, signal.SIGKILL)
        refused = await refusal(stub.Generate(request, timeout=30))
        assert (refused.code, refused.details) == (grpc.StatusCode.UNAVAILABLE, "the reward model's engine died")
        await until(lambda: server.broken is not None)
        assert "reward model" in str(server.broken)
        await asyncio.sleep(2 * FOLLOW_S)
        stub_of_health: Any = health_pb2_grpc.HealthStub(channel)
        status = await stub_of_health.Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(Unavailable, match="died"):
        await server.reward_model.score(CHAT, "a", {})


async def check_encoder(model: RunningReward, encoder: Path) -> None:
    texts = [*completions(30, 60), "ab " * 300]
    found = await scores(model, CHAT, texts)
    assert_same(found, await by_transformers(encoder, CHAT, texts))
    assert found[-1].status is CandidateStatus.TOO_LONG
