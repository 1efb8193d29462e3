"""Turns: fair between callers in candidates, first come first served within one, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bon_server.serving.admission.fair_queue import FairQueue, Turn

LARGEST = 8
callers = st.sampled_from("abcd")
sizes = st.integers(1, LARGEST)


def served(queue: FairQueue) -> list[Turn]:
    """All that waits, in the order of its turns."""
    order = []
    while queue:
        order.append(queue.next())
        queue.serve(order[-1])
    return order


def test_one_caller_is_served_in_order_of_arrival() -> None:
    queue = FairQueue()
    turns = [queue.join("a", n) for n in (8, 1, 3)]
    assert served(queue) == turns


def test_who_asks_for_little_does_not_wait_for_who_asks_for_much() -> None:
    queue = FairQueue()
    for _ in range(10):
        queue.join("greedy", 64)
    modest = queue.join("modest", 1)
    assert queue.next() == modest


def test_who_asks_for_much_is_served_after_as_much_of_others() -> None:
    queue = FairQueue()
    for _ in range(200):
        queue.join("many", 1)
    large = queue.join("large", 64)
    assert served(queue).index(large) == 64


def test_who_comes_later_gets_no_turns_for_the_time_before() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.join("a", 4)
    for _ in range(50):
        queue.serve(queue.next())
    for _ in range(50):
        queue.join("b", 4)
    assert Counter(turn.caller for turn in served(queue)[:20]) == {"a": 10, "b": 10}


def test_what_left_without_being_served_costs_nothing() -> None:
    queue = FairQueue()
    given_up = [queue.join("a", 8) for _ in range(50)]
    for _ in range(10):
        queue.join("b", 1)
    for turn in given_up:
        queue.leave(turn)
    for _ in range(10):
        queue.join("a", 1)
    assert Counter(turn.caller for turn in served(queue)[:10]) == {"a": 5, "b": 5}


@given(st.lists(st.tuples(callers, sizes), min_size=1, max_size=60))
def test_while_two_callers_wait_they_get_about_the_same(arrivals: list[tuple[str, int]]) -> None:
    """Golestani's bound for self-clocked fair queueing: they differ by one largest request each."""
    queue = FairQueue()
    waiting = Counter[str]()
    for caller, n in arrivals:
        queue.join(caller, n)
        waiting[caller] += n
    got = Counter[str]()
    for turn in served(queue):
        got[turn.caller] += turn.n
        backlogged = [got[caller] for caller in waiting if got[caller] < waiting[caller]]
        assert max(backlogged, default=0) - min(backlogged, default=0) <= 2 * LARGEST


@given(st.integers(1, LARGEST), st.lists(st.lists(sizes, max_size=3), min_size=200, max_size=200))
def test_nobody_waits_for_ever(n: int, newcomers: list[list[int]]) -> None:
    """However many new callers come: each turn brings up to three, each with one request."""
    queue = FairQueue()
    for _ in range(3):
        queue.join("before", LARGEST)
    patient = queue.join("patient", n)
    for number, arriving in enumerate(newcomers):
        turn = queue.next()
        queue.serve(turn)
        if turn == patient:
            return
        for place, size in enumerate(arriving):
            queue.join(f"new {number} {place}", size)
        if not queue:
            break
    raise AssertionError("200 turns of others")


@given(st.lists(st.tuples(callers, sizes), max_size=40), sizes)
def test_what_is_ahead_is_out_by_one_request_of_each_caller(arrivals: list[tuple[str, int]], n: int) -> None:
    queue = FairQueue()
    for caller, size in arrivals:
        queue.join(caller, size)
    estimate = queue.ahead("a", n)
    newcomer = queue.join("a", n)
    order = served(queue)
    before = sum(turn.n for turn in order[: order.index(newcomer)])
    assert estimate - 4 * LARGEST <= before <= estimate + 4 * LARGEST


@given(st.lists(st.tuples(st.sampled_from(["join", "serve", "leave"]), callers, sizes), max_size=80))
def test_everyone_is_served_or_leaves_once(script: list[tuple[str, str, int]]) -> None:
    queue = FairQueue()
    waiting: list[Turn] = []
    order: list[Turn] = []
    for action, caller, n in script:
        if action == "join":
            waiting.append(queue.join(caller, n))
        elif waiting and action == "serve":
            order.append(queue.next())
            queue.serve(order[-1])
            waiting.remove(order[-1])
        elif waiting:
            queue.leave(waiting.pop(n % len(waiting)))
        assert queue.candidates == sum(turn.n for turn in waiting)
        for each in "abcd":
            assert queue.of(each) == sum(turn.n for turn in waiting if turn.caller == each)
    order += served(queue)
    assert not queue and queue.candidates == 0
    for each in "abcd":
        tickets = [turn.ticket for turn in order if turn.caller == each]
        assert all(earlier < later for earlier, later in pairwise(tickets))
