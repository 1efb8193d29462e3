"""`policy.watch`: requests before, during and after a change of weights."""

from __future__ import annotations

import asyncio

import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Completion, Outcome, PolicyRef, Sampling
from tests.fakes import says
from tests.serving.running import question, refusal
from tests.serving.watching import Watch, Weights, weights
from tests.waiting import forever, until


async def test_requests_before_during_and_after(watch: Watch) -> None:
    go_on = asyncio.Event()

    async def slow(index: int) -> Completion:
        await go_on.wait()
        return says(f"old {index}")

    old, new = weights("1", slow), weights("2")
    watching = await watch(old)
    running = watching.running
    before = running.stub.Generate(question(request_id="before", n=4))
    await until(lambda: old.running == 4)
    watching.put("step-2", new)
    await watching.loaded("2")
    after = await running.ask(request_id="after", n=4)
    assert {candidate.policy_revision for candidate in after.candidates} == {"2"} == {after.policy.revision}
    assert not old.closed, "its request still runs"
    assert await running.health() == "SERVING"
    go_on.set()
    answer = await before
    assert answer.best.text.startswith("old")
    assert {candidate.policy_revision for candidate in answer.candidates} == {"1"} == {answer.policy.revision}
    await until(lambda: old.closed)
    for request_id, revision in (("before", "1"), ("after", "2")):
        record = running.record(request_id)
        assert record.policy is not None and record.policy.revision == revision
        assert {candidate.policy_revision for candidate in record.candidates} == {revision}
        replayed = await running.ask(request_id=request_id, n=4)
        assert replayed.replayed and replayed.policy.revision == revision
    assert not new.closed


async def test_a_request_in_the_queue_gets_the_weights_of_its_turn(watch: Watch) -> None:
    go_on = asyncio.Event()

    async def slow(index: int) -> Completion:
        await go_on.wait()
        return says("old")

    old = weights("1", slow)
    watching = await watch(old, **{"limits.max_n": 4, "limits.max_candidates_in_flight": 4, "defaults.n": 4})
    running = watching.running
    first = running.stub.Generate(question(request_id="first"))
    await until(lambda: old.running == 4)
    second = running.stub.Generate(question(request_id="second"))
    await until(lambda: running.admission.queued == 4)
    watching.put("step-2", weights("2"))
    await watching.loaded("2")
    go_on.set()
    assert ((await first).policy.revision, (await second).policy.revision) == ("1", "2")


async def test_what_was_learned_of_rewards_holds_for_the_weights_they_came_from(watch: Watch) -> None:
    """Equal rewards alone say nothing, so all are sampled; beside those of earlier prompts they say enough."""
    go_on = asyncio.Event()

    async def equal(index: int) -> Completion:
        await go_on.wait()
        return says("equal")

    old = weights("1")
    watching = await watch(old)

    async def scored(request_id: str) -> int:
        budget = pb.Budget(price_per_candidate=5.0)
        return (await watching.running.ask(request_id=request_id, n=16, budget=budget)).n_scored

    await watching.running.ask(request_id="different", n=16)
    old.script = equal
    late = asyncio.create_task(scored("known"))
    await until(lambda: old.running == 4)
    watching.put("step-2", weights("2", equal))
    await watching.loaded("2")
    go_on.set()
    assert await late == 4
    assert await scored("unknown") == 16


async def test_a_request_that_is_being_looked_at_keeps_the_policy_that_looks(watch: Watch) -> None:
    """What a policy closes is what it checks constraints with; the request goes on to the new weights."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Careful(Weights):
        async def check(self, sampling: Sampling) -> None:
            asked.set()
            await go_on.wait()
            assert not self.closed

    old = Careful(ref=PolicyRef("scripted", "1"))
    watching = await watch(old)
    answer = watching.running.stub.Generate(question(request_id="during"))
    await asked.wait()
    watching.put("step-2", weights("2"))
    await watching.loaded("2")
    assert not old.closed
    go_on.set()
    assert (await answer).policy.revision == "2"
    await until(lambda: old.closed)


async def test_replaced_weights_are_not_kept_for_ever(watch: Watch) -> None:
    async def one_ends(index: int) -> Completion:
        if index > 0:
            await forever()
        return says("old")

    old = weights("1", one_ends)
    watching = await watch(old, **{"policy.watch_drain_s": 0.05})
    running = watching.running
    late = asyncio.create_task(refusal(running.stub.Generate(question(request_id="late", n=3))))
    await until(lambda: old.running == 2)
    watching.put("step-2", weights("2"))
    refused = await late
    assert (refused.code, refused.details) == (
        grpc.StatusCode.UNAVAILABLE,
        "the weights it was sampled from were replaced",
    )
    assert refused.pushback_ms is not None
    await until(lambda: old.closed)
    again = await running.ask(request_id="late", n=3)
    assert not again.replayed and again.policy.revision == "2"
    first, second = sorted(running.records(), key=lambda record: record.attempt)
    assert (first.outcome, second.outcome) == (Outcome.FAILED, Outcome.OK)
    assert [candidate.policy_revision for candidate in first.candidates] == ["1", "1", "1"]
    assert first.candidates[0].reward is not None, "what was scored is kept"
