"""What is learned about deadlines from recent requests, and that it is forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.core.types import Completion
from bon_server.serving.admission.deadlines import FORGET_S, REMEMBER, STOPPING_S, Deadlines, _Recent
from tests.fakes import ScriptedPolicy, says
from tests.serving.conftest import Run
from tests.serving.running import question
from tests.waiting import until


@dataclass
class Clock:
    """Stands still until told otherwise."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def test_the_margin_is_what_is_configured_until_answers_take_longer() -> None:
    deadlines = Deadlines(100, Clock())
    assert deadlines.margin_s == 0.1
    deadlines.answered(0.001, stopped=False)
    assert deadlines.margin_s == 0.1, "stopping and 1 ms are less than that"
    deadlines.answered(0.2, stopped=False)
    assert deadlines.margin_s == pytest.approx(STOPPING_S + 2 * 0.2), "the next one may have to be stopped as well"
    deadlines.answered(STOPPING_S + 0.3, stopped=True)
    assert deadlines.margin_s == pytest.approx(STOPPING_S + 2 * 0.3)


def test_one_slow_commit_of_many_does_not_count() -> None:
    deadlines = Deadlines(100, Clock())
    for _ in range(REMEMBER - 2):
        deadlines.answered(0.001, stopped=False)
    deadlines.answered(5.0, stopped=False)
    assert deadlines.margin_s == 0.1
    for _ in range(3):
        deadlines.answered(5.0, stopped=False)
    assert deadlines.margin_s > 5.0


def test_a_bad_minute_is_forgotten_after_a_minute() -> None:
    """While the margin is above every deadline nothing is answered, so nothing else would ever bring it down."""
    clock = Clock()
    deadlines = Deadlines(100, clock)
    deadlines.answered(30.0, stopped=False)
    deadlines.first_scored(30.0, 1)
    assert deadlines.margin_s > 30.0 and deadlines.hopeless(20.0, 100)
    clock.now += FORGET_S + 1
    assert deadlines.margin_s == 0.1 and not deadlines.hopeless(0.001, 100)


def test_hopeless_is_what_hardly_anybody_has_managed() -> None:
    deadlines = Deadlines(100, Clock())
    assert not deadlines.hopeless(0.001, 100), "nothing is known yet"
    for hundredths in range(100, 200):
        deadlines.first_scored(hundredths / 100, 10)
    assert deadlines.hopeless(1.03, 10)
    assert not deadlines.hopeless(1.05, 10)


def test_a_request_for_fewer_tokens_needs_less_time() -> None:
    deadlines = Deadlines(100, Clock())
    deadlines.first_scored(10.0, 100)
    assert deadlines.hopeless(9.0, 100)
    assert deadlines.hopeless(9.0, 1000), "others stopped early, so may this one, but not before 10 s"
    assert not deadlines.hopeless(1.1, 10)
    assert deadlines.hopeless(0.9, 10)


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 10)), min_size=1, max_size=400), st.floats(0.01, 1))
def test_a_quantile_is_that_of_the_latest_values(arrivals: list[tuple[float, float]], share: float) -> None:
    clock = Clock(0.0)
    recent = _Recent(clock)
    values: list[tuple[float, float]] = []
    for pause, value in arrivals:
        clock.now += pause
        recent.add(value)
        values = [*values, (clock.now, value)][-REMEMBER:]
    young = sorted(value for at, value in values if at >= clock.now - FORGET_S)
    found = recent.quantile(share)
    assert sum(value <= found for value in young) >= share * len(young)
    assert sum(value < found for value in young) < share * len(young)


# Through the server


async def after_half_a_second(index: int) -> Completion:
    """A model that needs its time, whatever it is asked."""
    await asyncio.sleep(0.5)
    return says(f"answer {index}")


async def test_what_cannot_be_met_is_refused_before_anything_is_sampled(run: Run) -> None:
    policy = ScriptedPolicy(after_half_a_second)
    running = await run(policy)
    await running.ask(request_id="first")
    refused = await running.refused(request_id="second", within_s=0.4)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.details == "the deadline leaves less time than a first scored candidate takes"
    assert len(policy.started) == 4
    assert [record.request_id for record in running.records()] == ["first"]
    assert (await running.ask(request_id="second")).n_scored == 4


async def test_also_when_the_time_went_by_in_the_queue(run: Run) -> None:
    """Admitted with 0.3 s to go, where 0.5 s are needed."""
    gate = asyncio.Event()

    async def at_the_gate(index: int) -> Completion:
        await gate.wait()
        return says("late")

    policy = ScriptedPolicy(after_half_a_second)
    running = await run(policy, settings={"limits.max_candidates_in_flight": 4, "limits.max_n": 4, "defaults.n": 4})
    await running.ask(request_id="first")
    policy.script = at_the_gate
    holding = running.stub.Generate(question(request_id="holding"))
    await until(lambda: policy.running == 4)
    waiting = asyncio.create_task(running.refused(request_id="waiting", within_s=1.0))
    await asyncio.sleep(0.7)
    gate.set()
    assert (await waiting).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await holding
    assert len(policy.started) == 8, "of the first and of the one that held the permits"
