"""Deadlines: the best so far in time, or DEADLINE_EXCEEDED; never late, and nothing sampled for nobody.

Each has a server of its own, since a server learns from the requests it answered what it can answer in time.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Score
from tests.fakes import scored
from tests.faults.asking import (
    DEADLINE_S,
    MARGIN_MS,
    Asks,
    both,
    final,
    first_two_answer,
    hang,
    hang_scoring,
    only_first_is_scored,
)
from tests.faults.case import NOTHING_LOGGED, NOTHING_SAMPLED, OK, Case, Check, in_log, only_logged, replayed
from tests.faults.leaving import FOUR, ONE_SCORED, TWO_SCORED
from tests.faults.place import Kind, Place, Seen, see
from tests.waiting import forever, until

EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


def hurried(**settings: object) -> Kind:
    """A server that stops candidates half a second after a request came with `DEADLINE_S`."""
    return Kind({"limits.deadline_margin_ms": MARGIN_MS, **settings})


def _best_so_far(scored: int, generated: int) -> Check:
    def holds(place: Place, seen: Seen) -> None:
        answer = final(seen)
        assert (answer.partial, answer.n_requested, answer.n_generated, answer.n_scored) == (True, 4, generated, scored)
        assert answer.selection_reason == pb.SELECTION_REASON_DEADLINE
        assert answer.best.index == scored - 1
        assert not answer.HasField("kl"), "the bound does not hold for a stopped run"
        if isinstance(seen.answer, list):
            sent = [event.candidate for event in seen.answer if event.WhichOneof("event") == "candidate"]
            assert sorted(sent, key=lambda candidate: candidate.index) == list(answer.candidates)

    return Check(f"`partial`, the best of the {scored} scored, `DEADLINE`", holds)


def _failed(*statuses: str) -> Check:
    return in_log("failed", *statuses, error="DeadlinePassed")


def middles() -> Iterator[Case]:
    """A deadline in the middle of something."""
    sampled, scored = _best_so_far(2, 2), _best_so_far(1, 4)
    for name, asks, *checks in (
        ("deadline in the middle of sampling", Asks(sample=first_two_answer), sampled, in_log("partial", *TWO_SCORED)),
        (
            "deadline in the middle of sampling, the engine does not listen",
            Asks(sample=first_two_answer, obeys_abort=False),
            sampled,
            in_log("partial", *TWO_SCORED),
        ),
        ("deadline in the middle of scoring", Asks(score=only_first_is_scored), scored, in_log("partial", *ONE_SCORED)),
    ):
        yield from both(name, _in(DEADLINE_S, asks), OK, *checks, kind=hurried)


def nothing_in_time() -> Iterator[Case]:
    """Nothing is scored before the deadline."""
    said = ("the deadline passed before a candidate was scored",)
    for name, asks in (
        ("deadline before anything is sampled", Asks(sample=hang)),
        ("deadline before anything is scored", Asks(score=hang_scoring)),
    ):
        yield from both(name, _in(DEADLINE_S, asks), EXCEEDED, _failed(*["cancelled"] * 4), says=said, kind=hurried)
    asks = _in(0.5, Asks(encode=forever))
    yield from both("deadline while tokenising", asks, EXCEEDED, NOTHING_SAMPLED, NOTHING_LOGGED, kind=Kind)


def no_time() -> Iterator[Case]:
    """What there is would not be enough."""
    for name, seconds in (("deadline 0", 0.0), ("deadline 1 ms", 0.001), ("deadline shorter than stopping takes", 0.7)):
        yield from both(name, _in(seconds, Asks()), EXCEEDED, NOTHING_SAMPLED, NOTHING_LOGGED, kind=hurried)


def _in(seconds: float, asks: Asks) -> Asks:
    return Asks(asks.encode, asks.sample, asks.score, None, seconds, asks.obeys_abort)


async def in_the_queue(place: Place) -> Seen:
    place.policy.script = hang
    first = place.generate(request_id="first")
    await until(lambda: place.policy.running == 4)
    seen = await see(place.generate(DEADLINE_S))
    assert len(place.policy.started) == 4
    first.cancel()
    return seen


async def asked_again(place: Place) -> Seen:
    place.policy.script = first_two_answer
    first = await place.generate(DEADLINE_S)
    seen = await see(place.generate())
    assert (seen.answer.best, seen.answer.partial) == (first.best, True)
    return seen


async def _only_short(text: str) -> Score:
    if len(text) > 1:
        await forever()
    return scored(0.5)


async def of_score(place: Place, *completions: str) -> Seen:
    place.reward_model.script = _only_short
    request = pb.ScoreRequest(request_id=place.request_id, text="question", completions=completions)
    return await see(place.stub.Score(request, timeout=DEADLINE_S))


def _some_scored(place: Place, seen: Seen) -> None:
    names = [pb.CandidateStatus.Name(one.status).removeprefix("CANDIDATE_STATUS_") for one in seen.answer.candidates]
    assert names == ["SCORED", "CANCELLED", "SCORED"]


CASES = [
    *middles(),
    *nothing_in_time(),
    *no_time(),
    *both(
        "no deadline: the server's own",
        Asks(sample=first_two_answer),
        OK,
        _best_so_far(2, 2),
        kind=lambda: Kind({"limits.default_deadline_s": 0.6}),
    ),
    Case(
        name="deadline in the queue",
        happens=in_the_queue,
        ends=EXCEEDED,
        checks=(only_logged("only who held the permits is in the log", "first"),),
        kind=hurried(**FOUR),
    ),
    Case(
        name="retry of an answer by the deadline",
        happens=asked_again,
        ends=OK,
        checks=(replayed("the same answer, `replayed`"),),
        kind=hurried(),
    ),
    Case(
        name="deadline in the middle of Score",
        happens=lambda place: of_score(place, "x", "long", "y"),
        ends=OK,
        checks=(Check("those that were scored", _some_scored),),
        kind=hurried(),
    ),
    Case(
        name="deadline of Score before anything is scored",
        happens=lambda place: of_score(place, "long"),
        ends=EXCEEDED,
        checks=(_failed("cancelled"),),
        kind=hurried(),
    ),
]
