"""`policy.restarts`: what callers, health and metrics see while the policy's engine is gone, and when it stays gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import ConfigError, StartupError, Unavailable
from bon_server.core.types import Completion, Outcome
from bon_server.serving.lifecycle import restarts as restarts_module
from bon_server.serving.lifecycle import server as server_module
from bon_server.serving.lifecycle.restarts import FORGET_S, Tries
from bon_server.serving.lifecycle.signals import run_until_signalled
from bon_server.serving.policies import LOST_RETRY_MS
from tests.fakes import ScriptedPolicy, ScriptedReward, named_after_index, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal
from tests.waiting import SOON_S, forever, until

UP = 'bon_engine_up{role="policy"}'


def restarts_of(result: str) -> str:
    """The counter's name as it is scraped."""
    return f'bon_engine_restarts_total{{result="{result}",role="policy"}}'


@dataclass
class Hung:
    """What an engine without progress tells of itself."""

    stalled_s: float = 0.0
    registry: Any = field(default_factory=lambda: _Empty())


class _Empty:
    def collect(self) -> tuple[()]:
        return ()


@dataclass
class Starter:
    """Stands for `restart_policy`: what comes of each start, in turn; none left: it takes for ever."""

    outcomes: asyncio.Queue[ScriptedPolicy | Exception] = field(default_factory=asyncio.Queue)
    asked: list[object] = field(default_factory=list)
    given_up: int = 0

    async def __call__(self, config: PolicyConfig, lost: object) -> ScriptedPolicy:
        """Starts."""
        self.asked.append(lost)
        try:
            outcome = await self.outcomes.get()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


Mortal = Callable[..., Awaitable[tuple[Running, Starter]]]


@pytest.fixture
def mortal(run: Run, monkeypatch: pytest.MonkeyPatch) -> Mortal:
    """`running, starter = await mortal(policy, reward_model, settings)`; pauses are short."""

    async def start(
        policy: ScriptedPolicy, reward_model: ScriptedReward | None = None, **settings: Any
    ) -> tuple[Running, Starter]:
        starter = Starter()
        monkeypatch.setattr(server_module, "restart_policy", starter)
        monkeypatch.setattr(server_module, "memory_plan", lambda config: None)  # its policy has no files
        monkeypatch.setattr(restarts_module, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(restarts_module, "FOLLOW_S", 0.01)
        watched = {"policy.model": "scripted", "policy.restarts": 2}
        return await run(policy, reward_model, settings=watched | settings), starter

    return start


async def test_while_the_engine_is_gone_and_after(mortal: Mortal) -> None:
    policy = ScriptedPolicy()
    running, starter = await mortal(policy)
    first = await running.ask(request_id="first")
    policy.healthy = False
    await until(lambda: starter.asked == [policy])
    refused = await running.refused(request_id="second")
    assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, LOST_RETRY_MS)
    assert refused.details == "the policy's engine is not running"
    await running.health_becomes("NOT_SERVING")
    assert (await running.metrics())[UP] == 0
    replayed = await running.ask(request_id="first")
    assert replayed.replayed and replayed.best == first.best
    score = await running.stub.Score(pb.ScoreRequest(text="q", completions=["given"], request_id="score"))
    assert score.candidates[0].HasField("reward")
    assert (await running.stub.GetServerInfo(pb.GetServerInfoRequest())).policy.id == "scripted"
    assert running.server.broken is None
    starter.outcomes.put_nowait(ScriptedPolicy())
    await until(lambda: running.server.policy is not policy)
    assert (await running.ask(request_id="second")).n_scored == 4
    await running.health_becomes("SERVING")
    metrics = await running.metrics()
    assert (metrics[UP], metrics[restarts_of("started")], metrics[restarts_of("failed")]) == (1, 1, 0)
    # What was refused before anything was sampled is no attempt.
    assert sorted(record.request_id for record in running.records()) == ["first", "score", "second"]
    assert running.record("second").attempt == 1


async def test_what_runs_when_it_dies(mortal: Mortal) -> None:
    """What the engine still had to say fails; what only has to be scored is answered; the queue is sent away."""
    scoring, go_on, dies = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def sample(index: int) -> Completion:
        if index < 100:
            return says("sampled")
        if index == 101:
            return says("scored")
        await dies.wait()
        raise Unavailable("the engine died", 10_000)

    async def score(text: str) -> Any:
        if text == "sampled":
            scoring.set()
            await go_on.wait()
        return scored(1.0)

    policy = ScriptedPolicy(sample)
    limits = {"limits.max_n": 4, "limits.max_candidates_in_flight": 6, "defaults.n": 4}
    running, starter = await mortal(policy, ScriptedReward(score), **limits)
    sampled = running.stub.Generate(question(request_id="sampled"))
    await scoring.wait()
    dying = running.stub.Generate(question(request_id="dying", n=2, sampling=pb.SamplingParams(seed=100)))
    await until(lambda: policy.running == 1)
    queued = running.stub.Generate(question(request_id="queued"))
    await until(lambda: running.admission.queued == 4)
    policy.healthy = False
    dies.set()
    assert (await refusal(dying)).code is grpc.StatusCode.UNAVAILABLE
    starter.outcomes.put_nowait(ScriptedPolicy())
    await until(lambda: running.server.policy is not policy)
    go_on.set()
    assert (await sampled).n_scored == 4
    await queued  # it was given its turn after the new engine was there
    record = running.record("dying")
    assert (record.outcome, record.error) == (Outcome.FAILED, "Unavailable")
    assert [candidate.reward for candidate in record.candidates] == [None, 1.0], "what was scored is logged"


async def test_who_waits_for_a_permit_does_not_wait_for_an_engine(mortal: Mortal) -> None:
    dies = asyncio.Event()

    async def sample(index: int) -> Completion:
        await dies.wait()
        raise Unavailable("the engine died", 10_000)

    policy = ScriptedPolicy(sample)
    running, _ = await mortal(policy, **{"limits.max_n": 4, "limits.max_candidates_in_flight": 4, "defaults.n": 4})
    dying = running.stub.Generate(question())
    await until(lambda: policy.running == 4)
    queued = running.stub.Generate(question())
    await until(lambda: running.admission.queued == 4)
    policy.healthy = False
    dies.set()
    for call in (dying, queued):
        assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
    assert len(running.records()) == 1


async def test_an_engine_that_hangs(mortal: Mortal) -> None:
    telemetry: Any = Hung()

    async def one_ends(index: int) -> Completion:
        if index > 0:
            await forever()
        return says("scored")

    policy = ScriptedPolicy(one_ends, engines=(telemetry,))
    running, starter = await mortal(policy, **{"limits.engine_stall_s": 7})
    hanging = running.stub.Generate(question(request_id="a"))
    await until(lambda: policy.running == 3)
    telemetry.stalled_s = 8.0
    refused = await asyncio.wait_for(refusal(hanging), SOON_S)
    assert (refused.code, refused.details) == (grpc.StatusCode.UNAVAILABLE, "the engine made no progress")
    assert refused.pushback_ms == LOST_RETRY_MS
    telemetry.stalled_s = 0.0  # nothing is in it any more
    await until(lambda: starter.asked == [policy])
    assert (await running.refused()).details == "the policy's engine is not running"
    assert (await running.metrics())[UP] == 0, "though vLLM calls it healthy"
    assert running.server.broken is None and not running.server.hung
    starter.outcomes.put_nowait(ScriptedPolicy())
    await until(lambda: running.server.policy is not policy)
    assert (await running.ask(request_id="a")).n_scored == 4
    first, second = sorted(running.records(), key=lambda record: record.attempt)
    assert (first.outcome, second.outcome) == (Outcome.FAILED, Outcome.OK)
    assert first.candidates[0].reward is not None, "what was scored is kept"


async def test_what_only_has_to_be_scored_goes_on_when_an_engine_hangs(mortal: Mortal) -> None:
    telemetry: Any = Hung()
    go_on = asyncio.Event()

    async def score(text: str) -> Any:
        await go_on.wait()
        return scored(1.0)

    policy, reward_model = ScriptedPolicy(engines=(telemetry,)), ScriptedReward(score)
    running, starter = await mortal(policy, reward_model, **{"limits.engine_stall_s": 7})
    scoring = running.stub.Score(pb.ScoreRequest(text="q", completions=["given"]))
    await until(lambda: reward_model.running == 1)
    telemetry.stalled_s = 8.0
    await until(lambda: starter.asked == [policy])
    go_on.set()
    assert (await scoring).candidates[0].reward == 1.0
    telemetry.stalled_s = 0.0


async def test_an_engine_that_starts_in_the_moment_of_a_shutdown_is_closed(
    mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cancelled before its first step does nothing at all."""
    closed = list[object]()

    async def close(policy: ScriptedPolicy) -> None:
        closed.append(policy)

    monkeypatch.setattr(ScriptedPolicy, "close", close)
    first, second = ScriptedPolicy(), ScriptedPolicy()
    running, starter = await mortal(first)
    first.healthy = False
    await until(lambda: starter.asked == [first])
    starter.outcomes.put_nowait(second)
    restarts: Any = running.server._replacing
    while not restarts._retiring:  # noqa: ASYNC110 -- no turn of the event loop may be missed
        await asyncio.sleep(0)
    await restarts.close()
    await running.server.policies.close()
    assert set(closed) == {first, second}


async def test_starts_that_fail_are_tried_again(mortal: Mortal, caplog: pytest.LogCaptureFixture) -> None:
    policy = ScriptedPolicy()
    running, starter = await mortal(policy)
    starter.outcomes.put_nowait(StartupError("no room for it"))
    starter.outcomes.put_nowait(ScriptedPolicy())
    policy.healthy = False
    await until(lambda: running.server.policy is not policy)
    assert (await running.ask()).n_scored == 4
    metrics = await running.metrics()
    assert (metrics[restarts_of("started")], metrics[restarts_of("failed")]) == (1, 1)
    assert "the policy's engine was not started: no room for it" in caplog.text


@pytest.mark.parametrize("outcome", [StartupError("no room"), ZeroDivisionError(), ScriptedPolicy(healthy=False)])
async def test_when_it_does_not_help_the_server_ends(
    mortal: Mortal, outcome: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Failed starts, and starts of what dies again."""
    policy = ScriptedPolicy()
    running, starter = await mortal(policy)
    for _ in range(2):
        starter.outcomes.put_nowait(outcome)
    ended = asyncio.create_task(run_until_signalled(running.server, asyncio.Queue()))
    policy.healthy = False
    assert await asyncio.wait_for(ended, 10) == 1
    assert len(starter.asked) == 2
    assert "stopping: the policy's engine died, and policy.restarts = 2 starts in a row did not help" in caplog.text


async def test_a_shutdown_does_not_wait_for_the_start(mortal: Mortal) -> None:
    policy = ScriptedPolicy()
    running, starter = await mortal(policy)
    policy.healthy = False
    await until(lambda: starter.asked == [policy])
    await running.server.drain(0.0)
    assert starter.given_up == 1
    assert (await running.refused()).code is grpc.StatusCode.UNAVAILABLE


async def test_the_reward_model_is_not_looked_after(mortal: Mortal) -> None:
    reward_model = ScriptedReward()
    running, starter = await mortal(ScriptedPolicy(), reward_model)
    reward_model.healthy = False
    assert running.server.broken == "the reward model can score no more"
    assert starter.asked == []


async def test_without_restarts_what_is_dead_is_refused_and_ends(run: Run) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    policy.healthy = False
    assert (await running.refused()).code is grpc.StatusCode.UNAVAILABLE
    assert running.server.broken == "the policy's engine died"
    assert running.records() == []


async def test_settings_that_cannot_be(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.restarts = 3 needs an engine, and policy\.model is synthetic"):
        await run(settings={"policy.restarts": 3})
    with pytest.raises(ConfigError, match=r"policy\.restarts = 1 with policy\.watch = '.*': the weights in use may be"):
        await run(settings={"policy.restarts": 1, "policy.watch": str(tmp_path), "policy.model": "m"})
    with pytest.raises(ConfigError, match=r"policy\.restarts = -1: .*>= 0"):
        await run(settings={"policy.restarts": -1})


def test_pauses_double_and_end(now_s: list[float]) -> None:
    tries = Tries(9, clock_s=lambda: now_s[0])
    assert [tries.next_pause_s() for _ in range(11)] == [1, 2, 4, 8, 16, 32, 60, 60, 60, None, None]


def test_an_engine_that_lives_long_makes_up_for_earlier_ones(now_s: list[float]) -> None:
    tries = Tries(3, clock_s=lambda: now_s[0])
    assert [tries.next_pause_s(), tries.next_pause_s()] == [1, 2]
    tries.succeeded()
    now_s[0] += FORGET_S - 1
    assert tries.next_pause_s() == 4, "too short a life"
    tries.succeeded()
    now_s[0] += FORGET_S
    assert tries.next_pause_s() == 1
    now_s[0] += 10 * FORGET_S  # time without an engine counts for nothing
    assert [tries.next_pause_s(), tries.next_pause_s(), tries.next_pause_s()] == [2, 4, None]


@pytest.fixture
def now_s() -> list[float]:
    """A clock that stands until it is set."""
    return [1000.0]


async def test_the_same_is_started(mortal: Mortal, caplog: pytest.LogCaptureFixture) -> None:
    """The second engine that dies is the one that replaced the first."""
    caplog.set_level(logging.WARNING)
    first, second, third = ScriptedPolicy(), ScriptedPolicy(named_after_index), ScriptedPolicy()
    running, starter = await mortal(first)
    for policy in (second, third):
        starter.outcomes.put_nowait(policy)
    first.healthy = False
    await until(lambda: running.server.policy is second)
    second.healthy = False
    await until(lambda: running.server.policy is third)
    assert starter.asked == [first, second]
    assert caplog.text.count("the policy's engine was started anew") == 2
