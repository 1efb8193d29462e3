"""Models that answer at once, in the call itself, or as no model may: each candidate ends once, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from typing import Any

import pytest

from bon_server.core.errors import InternalError, RequestError, RewardFailed, SamplingFailed, Unavailable
from bon_server.core.types import Candidate, Request
from tests.asking import ask, on_a_budget, statuses
from tests.fakes import ScriptedPolicy, ScriptedReward, a_request, says, scored

CANARY = "canary"


class Later:
    """An awaitable that is neither a future nor a coroutine."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, Any]:
        """After a turn of the event loop."""
        yield from asyncio.sleep(0).__await__()
        return self._answer


def answers(result: Any) -> Callable[..., Any]:
    """Gives this."""
    return lambda *_: result


def at_once(result: Any) -> Callable[..., Any]:
    """A future that is done."""

    def answer(*_: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(result)
        return future

    return answer


def raises(error: BaseException) -> Callable[..., Any]:
    """Where it is called, not where it is awaited."""

    def fail(*_: Any) -> Awaitable[Any]:
        raise error

    return fail


def cancelled(*_: Any) -> asyncio.Future[Any]:
    """A future that the model itself has cancelled."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


SAMPLES: dict[str, tuple[Callable[..., Any], type[RequestError] | None]] = {
    "at once": (at_once(says(CANARY)), None),
    "an awaitable": (answers(Later(says(CANARY))), None),
    "fails": (raises(SamplingFailed("engine error")), SamplingFailed),
    "is dead": (raises(Unavailable("the engine died", 5)), Unavailable),
    "has a bug": (raises(ValueError(CANARY)), InternalError),
    "cancels itself": (raises(asyncio.CancelledError(CANARY)), InternalError),
    "is cancelled": (cancelled, InternalError),
    "no awaitable": (answers(CANARY), InternalError),
}
SCORES: dict[str, tuple[Callable[..., Any], type[RequestError] | None]] = {
    "at once": (at_once(scored(1.0)), None),
    "an awaitable": (answers(Later(scored(1.0))), None),
    "fails": (raises(RewardFailed("out of memory")), RewardFailed),
    "has a bug": (raises(ValueError(CANARY)), InternalError),
    "cancels itself": (raises(asyncio.CancelledError(CANARY)), InternalError),
    "is cancelled": (cancelled, InternalError),
    "no awaitable": (answers(CANARY), InternalError),
}
BUDGETS: list[dict[str, float]] = [{}, {"stop_at_reward": 1.0}, {"price_per_candidate": 0.0}]


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("kind", SAMPLES)
def test_samples(kind: str, budget: dict[str, float], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, error = SAMPLES[kind]
    monkeypatch.setattr(ScriptedPolicy, "sample", sample)
    check(on_a_budget(n, **budget), error)


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("kind", SCORES)
def test_scores(kind: str, budget: dict[str, float], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    score, error = SCORES[kind]
    monkeypatch.setattr(ScriptedReward, "score", score)
    check(on_a_budget(n, **budget), error)


@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_given_completions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    score, error = SCORES[kind]
    monkeypatch.setattr(ScriptedReward, "score", score)
    check(replace(a_request(3), sampling=None, given=("a", "b", "a")), error)


def check(request: Request, error: type[RequestError] | None) -> None:
    """`ask` itself looks for what is left behind, and for what the event loop would print."""
    ended = list[Candidate]()
    answer = ask(request, ScriptedPolicy(), ScriptedReward(), ended=ended)
    gc.collect()
    assert (type(answer.error) if answer.error else None) is error
    assert sorted(ended, key=lambda candidate: candidate.index) == list(answer.candidates)
    assert [candidate.index for candidate in answer.candidates] == list(range(request.n))
    assert CANARY not in f"{answer.error}{[candidate.error for candidate in answer.candidates]}"
    if error is None:
        assert "scored" in statuses(answer)
