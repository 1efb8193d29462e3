"""However a call ends, at whatever stage: engines hold no request, tasks and permits are back where they were."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.errors import RewardFailed, SamplingFailed, Unavailable
from bon_server.types import Completion, FinishReason, Score
from tests.fakes import ScriptedPolicy, ScriptedReward, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Running, question
from tests.waiting import forever, until

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED
MARGIN_MS = 1500
DEADLINE_S = 2.0
"""Wide apart from each other, because a busy machine takes its time to commit and answer."""
LIMITS = {
    "limits.max_candidates_in_flight": 4,
    "limits.max_n": 4,
    "defaults.n": 4,
    "limits.deadline_margin_ms": MARGIN_MS,
}


@dataclass
class Models:
    """What happens at each stage; unset: it goes on at once."""

    encode: Callable[[], Awaitable[None]] | None = None
    sample: Callable[[int], Awaitable[Completion]] | None = None
    score: Callable[[str], Awaitable[Score]] | None = None
    policy: ScriptedPolicy = field(default_factory=ScriptedPolicy)
    reward_model: ScriptedReward = field(default_factory=ScriptedReward)

    def __post_init__(self) -> None:
        self.policy.prepare = self.encode
        self.policy.script = self.sample or self.policy.script
        self.reward_model.script = self.score or self.reward_model.script


@dataclass(frozen=True)
class Case:
    """One way to end."""

    models: Callable[[], Models]
    code: grpc.StatusCode
    leaves_when: Callable[[Running, Models], bool] | None = None
    """The caller leaves then; None: it waits for the answer."""
    deadline_s: float | None = None
    slow_disk: bool = False
    """Nothing can be committed until the caller has left."""


async def hang(_: object) -> Completion:
    """A sample that never ends."""
    await forever()


async def hang_scoring(_: str) -> Score:
    """A score that never comes."""
    await forever()


async def first_answers(index: int) -> Completion:
    """The others are sampled for ever."""
    if index:
        await forever()
    return says("answer 0")


async def first_is_scored(text: str) -> Score:
    """The others are scored for ever."""
    if text != "answer 0":
        await forever()
    return scored(1.0)


def failing(error: Exception) -> Callable[[object], Awaitable[Completion]]:
    """A stage that fails."""

    async def fail(_: object) -> Completion:
        raise error

    return fail


def failing_score(error: Exception) -> Callable[[str], Awaitable[Score]]:
    """A score that fails."""

    async def fail(_: str) -> Score:
        raise error

    return fail


def is_scored(running: Running, models: Models) -> bool:
    """All candidates have their scores, which take no time."""
    return models.reward_model.calls.total() == 4


def samples(running: Running, models: Models) -> bool:
    """All candidates are being sampled."""
    return models.policy.running == 4


def scores(running: Running, models: Models) -> bool:
    """All candidates are being scored."""
    return models.reward_model.running == 4


def one_is_scored(running: Running, models: Models) -> bool:
    """One has its score; three are still being sampled."""
    return models.reward_model.calls.total() == 1 and models.policy.running == 3


CASES = {
    "normal end": Case(Models, OK),
    "cancelled while tokenising": Case(
        lambda: Models(encode=forever), CANCELLED, lambda running, models: running.server._service.running == 1
    ),
    "cancelled while sampling": Case(lambda: Models(sample=hang), CANCELLED, samples),
    "cancelled with one scored": Case(lambda: Models(sample=first_answers), CANCELLED, one_is_scored),
    "cancelled while scoring": Case(lambda: Models(score=hang_scoring), CANCELLED, scores),
    "cancelled while committing": Case(Models, CANCELLED, is_scored, slow_disk=True),
    "deadline while tokenising": Case(
        lambda: Models(encode=forever), grpc.StatusCode.DEADLINE_EXCEEDED, deadline_s=DEADLINE_S
    ),
    "deadline while sampling": Case(
        lambda: Models(sample=hang), grpc.StatusCode.DEADLINE_EXCEEDED, deadline_s=DEADLINE_S
    ),
    "deadline with one sampled and scored": Case(lambda: Models(sample=first_answers), OK, deadline_s=DEADLINE_S),
    "deadline while scoring": Case(
        lambda: Models(score=hang_scoring), grpc.StatusCode.DEADLINE_EXCEEDED, deadline_s=DEADLINE_S
    ),
    "deadline with all sampled and one scored": Case(lambda: Models(score=first_is_scored), OK, deadline_s=DEADLINE_S),
    "deadline that leaves no time": Case(Models, grpc.StatusCode.DEADLINE_EXCEEDED, deadline_s=MARGIN_MS / 2e3),
    "samples fail": Case(lambda: Models(sample=failing(SamplingFailed("engine error"))), grpc.StatusCode.INTERNAL),
    "the engine dies": Case(
        lambda: Models(sample=failing(Unavailable("the engine died", 2000))), grpc.StatusCode.UNAVAILABLE
    ),
    "sampling has a bug": Case(lambda: Models(sample=failing(ZeroDivisionError())), grpc.StatusCode.INTERNAL),
    "the reward model fails": Case(
        lambda: Models(score=failing_score(RewardFailed("out of memory"))), grpc.StatusCode.INTERNAL
    ),
    "scoring has a bug": Case(lambda: Models(score=failing_score(ZeroDivisionError())), grpc.StatusCode.INTERNAL),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
async def test_nothing_is_left(run: Run, case: Case, streamed: bool) -> None:
    models = case.models()
    running = await run(models.policy, models.reward_model, LIMITS)
    assert await ends(running, models, case, streamed) is case.code
    await running.at_rest()
    assert (running.admission.free, running.admission.queued) == (4, 0)
    assert (models.policy.running, models.reward_model.running) == (0, 0)
    assert models.policy._aborts == {}
    assert running.server._service.running == 0
    models.policy.prepare = None
    models.policy.script, models.reward_model.script = ScriptedPolicy().script, ScriptedReward().script
    assert (await running.ask()).n_scored == 4, "a request that needs all permits"


async def test_nothing_is_left_of_those_who_wait(run: Run) -> None:
    """Three in the queue: one leaves, one has a deadline, one is answered."""
    models = Models(sample=hang)
    running = await run(models.policy, models.reward_model, LIMITS)
    holding = running.stub.Generate(question())
    await until(lambda: models.policy.running == 4)
    leaving = running.stub.Generate(question())
    late = running.stub.Generate(question(), timeout=DEADLINE_S)
    patient = running.stub.Generate(question())
    await until(lambda: running.admission.queued == 12)
    leaving.cancel()
    assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.admission.queued == 4)
    models.policy.script = ScriptedPolicy().script
    holding.cancel()
    assert (await patient).n_scored == 4
    await running.at_rest()
    assert (running.admission.free, running.admission.queued) == (4, 0)


async def ends(running: Running, models: Models, case: Case, streamed: bool) -> grpc.StatusCode:
    """Asks, leaves when the case says so, and returns how it ended."""
    call: grpc.aio.Call
    with running.slow_disk() if case.slow_disk else nullcontext():
        if streamed:
            call = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question()), timeout=case.deadline_s)
            reading = asyncio.create_task(read(call))
        else:
            call = running.stub.Generate(question(), timeout=case.deadline_s)
            reading = asyncio.create_task(call.wait_for_connection())
        if case.leaves_when is not None:
            leaves_when = case.leaves_when
            await until(lambda: leaves_when(running, models))
            call.cancel()
        code: grpc.StatusCode = await call.code()
        await asyncio.gather(reading, return_exceptions=True)
        return code


async def read(stream: grpc.aio.UnaryStreamCall[pb.GenerateStreamRequest, pb.GenerateStreamResponse]) -> None:
    """To the end."""
    async for _ in stream:
        pass


# Readers who do not read


def long(index: int) -> Completion:
    """More than gRPC takes for somebody who does not read."""
    return Completion(f"{index}" * 700_000, (), FinishReason.STOP)


async def test_a_reader_who_stalls_is_cut_off_and_held_up_nobody(run: Run) -> None:
    async def at_length(index: int) -> Completion:
        return long(index)

    policy = ScriptedPolicy(at_length)
    running = await run(policy, settings={**LIMITS, "limits.slow_reader_s": 0.5})
    request = pb.GenerateStreamRequest(request=question(request_id="a"))
    stalled = running.stub.GenerateStream(request)
    await until(lambda: [record.request_id for record in running.records()] == ["a"])
    policy.script = ScriptedPolicy().script
    assert (await running.ask(request_id="b")).n_scored == 4, "the permits are back, although nothing was read"
    await until(lambda: running.server._service.running == 0)
    assert running.server.attempts.running == 0
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read(stalled)
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ended.value.details() == "nothing was read from the stream for 0.5 s"
    assert (await running.ask(request_id="a")).replayed


async def test_a_reader_who_takes_his_time_gets_it_all(run: Run) -> None:
    async def at_length(index: int) -> Completion:
        return long(index)

    running = await run(ScriptedPolicy(at_length), settings={**LIMITS, "limits.slow_reader_s": 5.0})
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(view=pb.CANDIDATE_VIEW_WINNER)))
    kinds = []
    async for event in stream:
        kinds.append(event.WhichOneof("event"))
        await asyncio.sleep(0.05)
    assert (kinds.count("candidate"), kinds[-1]) == (4, "final")
