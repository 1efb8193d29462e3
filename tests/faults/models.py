"""Models that fail, hang, return nonsense or have bugs, and models that must not be loaded."""

from __future__ import annotations

import math

import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import RewardFailed, SamplingFailed, Unavailable
from bon_server.core.types import CandidateStatus, Completion, Score
from tests.fakes import says, scored
from tests.faults.asking import DEADLINE_S, Asks, both, failing, final, hang_scoring, only_first_is_scored
from tests.faults.case import OK, PUSHBACK, Check, in_log
from tests.faults.deadlines import hurried
from tests.faults.place import Place, Seen

INTERNAL, UNAVAILABLE = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE
OPAQUE = ("internal error ", "; the server's log has the details")
NON_FINITE = Score(CandidateStatus.NON_FINITE)
SCORED = ("scored",) * 4

# Sampling


async def first_fails(index: int) -> Completion:
    if index == 0:
        raise SamplingFailed("out of memory")
    return says(f"answer {index}")


async def nothing(index: int) -> Completion:
    return says("")


def _fewer(place: Place, seen: Seen) -> None:
    answer = final(seen)
    assert (answer.partial, answer.n_generated, answer.n_scored, answer.best.index) == (True, 3, 3, 1)
    assert answer.candidates[0].finish_reason == pb.FINISH_REASON_ERROR


def _empty_best(place: Place, seen: Seen) -> None:
    best = final(seen).best
    assert (best.text, best.index, best.HasField("reward"), best.reward) == ("", 0, True, 0.0)


def _all_failed(error: str) -> Check:
    return in_log("failed", *["failed"] * 4, error=error)


SAMPLING = [
    *both(
        "fewer candidates than asked", Asks(sample=first_fails), OK, Check("`partial`, the best of the rest", _fewer)
    ),
    *both(
        "sampling out of memory",
        Asks(sample=failing(SamplingFailed("out of memory"))),
        INTERNAL,
        _all_failed("SamplingFailed"),
        says=OPAQUE,
    ),
    *both(
        "engine dies",
        Asks(sample=failing(Unavailable("the engine died", 2000))),
        UNAVAILABLE,
        PUSHBACK,
        says=("the engine died",),
    ),
    *both(
        "empty completion", Asks(sample=nothing), OK, Check("scored like others", _empty_best), in_log("ok", *SCORED)
    ),
]

# Scoring


def _scores(of: dict[str, Score]) -> Asks:
    async def score(text: str) -> Score:
        return of.get(text, scored(float(len(text))))

    return Asks(score=score)


def _left_out(status: pb.CandidateStatus.ValueType) -> Check:
    def holds(place: Place, seen: Seen) -> None:
        answer = final(seen)
        assert (answer.partial, answer.n_generated, answer.n_scored, answer.best.index) == (True, 4, 3, 1)
        assert answer.candidates[0].status == status
        assert not answer.candidates[0].HasField("reward")
        assert place.row().candidates[0].reward is None

    return Check("left out and marked, the best of the rest", holds)


async def second_fails(text: str) -> Score:
    if text == "answer 1":
        raise RewardFailed("out of memory")
    return scored(1.0)


async def all_nan(_: str) -> Score:
    return NON_FINITE


def _no_reward_logged(place: Place, seen: Seen) -> None:
    assert all(candidate.reward is None for row in place.rows() for candidate in row.candidates)


def _says_scored(reward: float) -> Asks:
    async def score(_: str) -> Score:
        return Score(CandidateStatus.SCORED, reward)

    return Asks(score=score)


def _texts_logged(place: Place, seen: Seen) -> None:
    assert [candidate.text for candidate in place.row().candidates] == [f"answer {i}" for i in range(4)]


LIES = {"NaN": math.nan, "∞": math.inf, "−∞": -math.inf}
IN_TIME = Check("`partial`, the one that was scored", lambda place, seen: _one(seen))


def _one(seen: Seen) -> None:
    answer = final(seen)
    assert (answer.partial, answer.n_scored, answer.best.index) == (True, 1, 0)


SCORING = [
    *both(
        "one NaN reward",
        _scores({"answer 0": NON_FINITE}),
        OK,
        _left_out(pb.CANDIDATE_STATUS_NON_FINITE),
        in_log("partial", "non_finite", "scored", "scored", "scored"),
    ),
    *both(
        "all rewards NaN",
        Asks(score=all_nan),
        INTERNAL,
        in_log("failed", *["non_finite"] * 4, error="NothingFinite"),
        Check("with all texts", _texts_logged),
        says=OPAQUE,
    ),
    *both(
        "completion longer than the reward model's context",
        _scores({"answer 0": Score(CandidateStatus.TOO_LONG)}),
        OK,
        _left_out(pb.CANDIDATE_STATUS_TOO_LONG),
    ),
    *both(
        "scoring of one candidate fails",
        _scores({"answer 0": Score(CandidateStatus.FAILED, error="scripted")}),
        OK,
        _left_out(pb.CANDIDATE_STATUS_FAILED),
    ),
    *both(
        "scoring out of memory",
        Asks(score=failing(RewardFailed("out of memory"))),
        INTERNAL,
        _all_failed("RewardFailed"),
        says=OPAQUE,
    ),
    *both(
        "reward model fails on one of four: no random pick",
        Asks(score=second_fails),
        INTERNAL,
        Check("with all texts", _texts_logged),
        says=OPAQUE,
    ),
    *both(
        "reward model slower than the deadline, one scored",
        Asks(score=only_first_is_scored, deadline_s=DEADLINE_S),
        OK,
        IN_TIME,
        kind=hurried,
    ),
    *both(
        "reward model slower than the deadline, none scored",
        Asks(score=hang_scoring, deadline_s=DEADLINE_S),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        in_log("failed", *["cancelled"] * 4, error="DeadlinePassed"),
        kind=hurried,
    ),
    *[
        case
        for name, reward in LIES.items()
        for case in both(
            f"reward model calls {name} a finite reward",
            _says_scored(reward),
            INTERNAL,
            Check("no reward in the log", _no_reward_logged),
            says=OPAQUE,
        )
    ],
]

CASES = [*SAMPLING, *SCORING]
