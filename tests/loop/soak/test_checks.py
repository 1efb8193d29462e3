"""Each check of a soak can fail."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import scipy.stats
from bon.v1 import bon_pb2 as pb

from bon_server.loop.soak import checks
from bon_server.loop.soak.calls import promises
from bon_server.loop.soak.ledger import Ledger
from bon_server.loop.soak.seen import Footprint, Gauges, Rest


def memory_of(minutes: float, mb_per_min: float) -> list[tuple[float, int]]:
    """A look each second at a process of about 200 MB that comes and goes with 2 MB."""
    dice = random.Random(3)
    seconds = range(int(minutes * 60))
    return [(float(s), int(200e6 + mb_per_min * 1e6 * s / 60 + dice.uniform(-2e6, 2e6))) for s in seconds]


def answer(request_id: str, *, index: int = 0, text: str = "yes", replayed: bool = False) -> pb.GenerateResponse:
    """What a caller is told."""
    return pb.GenerateResponse(request_id=request_id, best=pb.Candidate(index=index, text=text), replayed=replayed)


@pytest.mark.parametrize(("mb_per_min", "passed"), [(0.0, True), (0.8, True), (1.2, False), (-3.0, True)])
def test_memory_is_judged_by_its_slope(mb_per_min: float, passed: bool) -> None:
    check = checks.memory(memory_of(20, mb_per_min), limit_mb_per_min=1.0)
    assert check.passed is passed
    assert check.figure == pytest.approx(mb_per_min, abs=0.05)


def test_a_short_run_says_its_slope_and_does_not_judge() -> None:
    check = checks.memory(memory_of(2, 50.0), limit_mb_per_min=1.0)
    assert check.passed is None and check.figure is not None and check.figure > 40
    assert "not judged under 5 minutes" in check.detail
    assert checks.memory([], 1.0).passed is None


def test_the_line_is_that_of_others() -> None:
    x, y = zip(*memory_of(1, 3.0), strict=True)
    theirs = scipy.stats.linregress(x, y)
    ours = checks.fit_line(x, y)
    assert (ours.slope, ours.standard_error) == pytest.approx((theirs.slope, theirs.stderr))


def test_what_is_held_has_to_come_back() -> None:
    assert checks.flat("descriptors", 50, 58, spare=8).passed
    assert checks.flat("descriptors", 50, 59, spare=8).passed is False
    assert checks.flat("tasks", 5, 6, spare=0).passed is False
    assert checks.at_zero("permits held", 0).passed
    assert checks.at_zero("permits held", 4).passed is False


def test_a_server_at_rest_is_idle_and_holds_what_it_held() -> None:
    idle, footprint = Gauges(tasks=5, permits=0, queued=0, attempts=0, calls=0), Footprint(1, 50, 20)
    before = Rest(idle, footprint)
    assert Rest(idle, Footprint(9_999, 58, 36)).is_back_at(before)
    assert not Rest(idle, Footprint(1, 59, 20)).is_back_at(before)
    assert not Rest(idle, Footprint(1, 50, 37)).is_back_at(before)
    for name in ("tasks", "permits", "queued", "attempts", "calls"):
        busy = Gauges(**{**{field: getattr(idle, field) for field in Gauges.__match_args__}, name: 6})
        assert not Rest(busy, footprint).is_back_at(before)
    assert Rest(None, None).is_back_at(before), "what cannot be seen is not waited for"


@pytest.mark.parametrize("code", ["UNKNOWN", "INTERNAL", "UNAUTHENTICATED", "CANCELLED"])
@pytest.mark.parametrize("may_refuse", [False, True])
def test_codes_that_are_not_promised(code: str, may_refuse: bool) -> None:
    seen = {"unary": Counter(OK=9), "stream": Counter({"OK": 3, code: 2})}
    check = checks.codes(seen, promises(may_refuse))
    assert (check.passed, check.figure, check.detail) == (False, 2, f"stream {code}: 2")


def test_codes_that_are() -> None:
    seen = {"unary": Counter(OK=9), "twins": Counter(OK=1, ABORTED=1), "bad input": Counter(INVALID_ARGUMENT=1)}
    assert checks.codes(seen, promises(may_refuse=False)).passed
    seen["unary"]["UNAVAILABLE"] = 1
    assert checks.codes(seen, promises(may_refuse=False)).passed is False
    assert checks.codes(seen, promises(may_refuse=True)).passed, "others may keep it busy"
    bad_input_taken = {"bad input": Counter(OK=1)}
    assert checks.codes(bad_input_taken, promises(may_refuse=True)).passed is False


def test_no_kind_of_call_may_end_as_a_bug() -> None:
    never = {"UNKNOWN", "INTERNAL", "UNIMPLEMENTED", "DATA_LOSS"}
    assert not any(never & codes for codes in promises(may_refuse=True).values())


def test_an_id_has_one_answer() -> None:
    ledger = Ledger("run")
    ledger.answered(answer("run-1"))
    ledger.answered(answer("run-1", replayed=True))
    ledger.answered(answer("run-2", replayed=True))
    ledger.answered(answer("run-2"))
    assert ledger.contradictions == [], "of two at the same time the replayed one may be heard of first"
    assert all(check.passed for check in checks.answers(ledger))
    ledger.answered(answer("run-1", index=1, replayed=True))
    ledger.answered(answer("run-1", text="no", replayed=True))
    ledger.answered(answer("run-2"))
    assert ledger.contradictions == ["run-1", "run-1", "run-2"], "another index, another text, sampled twice"
    assert [check.passed for check in checks.answers(ledger)] == [True, False]


def test_nothing_acknowledged_is_no_success() -> None:
    assert checks.answers(Ledger("run"))[0].passed is False
