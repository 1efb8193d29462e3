"""Through the whole server on a real engine: however a call ends, the engine holds no request of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.serving.lifecycle import server as server_module
from bon_server.serving.lifecycle.server import Server
from tests.conftest import synthetic_config
from tests.fakes import ScriptedReward, scored
from tests.serving.running import Running, refusal
from tests.waiting import forever, until

if TYPE_CHECKING:
    from bon_server.core.types import Score
    from bon_server.models.vllm.policy import VllmPolicy

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

ENDLESS = pb.GenerateRequest(
    tokens=pb.Tokens(ids=[28, 28]), n=4, sampling=pb.SamplingParams(temperature=0.01, max_tokens=2000)
)
"""Goes on for more than a thousand tokens: after this prompt one token of each step leads by .15 logits at least."""
SHORT = pb.GenerateRequest(text="question", n=4, sampling=pb.SamplingParams(temperature=1.0, max_tokens=8))


@asynccontextmanager
async def serving(
    policy: VllmPolicy, reward_model: ScriptedReward, log: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    """A server with this engine, which stays open for other tests."""

    async def same(model: object) -> object:
        return model

    async def stay_open() -> None:
        return None

    monkeypatch.setattr(policy, "close", stay_open)
    monkeypatch.setattr(server_module, "start_policy", lambda _: same(policy))
    monkeypatch.setattr(server_module, "start_reward", lambda _: same(reward_model))
    server = await Server.start(synthetic_config(log))
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await channel.channel_ready()
            yield Running(server, channel, log)
    finally:
        await server.drain(0.0)
        await server.stop()


async def nothing_is_left(running: Running, policy: VllmPolicy) -> None:
    """In the engine, of permits, and of tasks; and the engine still answers."""
    await running.at_rest()
    await until(lambda: policy.unfinished_requests() == 0)
    assert (await running.stub.Generate(SHORT)).n_scored == 4


async def test_the_engine_is_at_rest_after_each_end(
    policy: VllmPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward_model = ScriptedReward()
    async with serving(policy, reward_model, tmp_path / "log", monkeypatch) as running:
        await nothing_is_left(running, policy)

        call = running.stub.Generate(ENDLESS)
        await until(lambda: policy.unfinished_requests() == 4)
        call.cancel()
        await nothing_is_left(running, policy)

        stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=ENDLESS))
        await until(lambda: policy.unfinished_requests() == 4)
        stream.cancel()
        await nothing_is_left(running, policy)

        refused = await refusal(running.stub.Generate(ENDLESS, timeout=0.3))
        assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await nothing_is_left(running, policy)

        async def hang(text: str) -> Score:
            await forever()

        reward_model.script = hang
        call = running.stub.Generate(SHORT)
        await until(lambda: reward_model.running > 0)
        call.cancel()

        async def fail(text: str) -> Score:
            raise ZeroDivisionError

        reward_model.script = fail
        refused = await refusal(running.stub.Generate(SHORT))
        assert refused.code is grpc.StatusCode.INTERNAL

        async def as_before(text: str) -> Score:
            return scored(1.0)

        reward_model.script = as_before
        await nothing_is_left(running, policy)
