"""Rewards by a function: what it is given, what it may return, and everything it may do wrong."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bon_server.errors import StartupError
from bon_server.reward.function import FunctionReward, as_score
from bon_server.types import CandidateStatus, Message, Prompt

PROMPT = Prompt(messages=(Message("user", "1+1?"),))
SECRET = "what nobody else may read"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file `rewards_of_a_test.py` in the current directory, to be written by the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "rewards_of_a_test.py"
    sys.modules.pop("rewards_of_a_test", None)


def load(module: Path, body: str, name: str = "reward") -> FunctionReward:
    module.write_text(body)
    return FunctionReward.from_spec(f"function:rewards_of_a_test:{name}")


async def score(function: Any) -> Any:
    reward = FunctionReward(function, "function:m:f", "revision")
    try:
        return await asyncio.wait_for(reward.score(PROMPT, SECRET, {"answer": "2"}), 5)
    finally:
        await reward.close()


async def test_it_gets_prompt_completion_and_context(module: Path) -> None:
    reward = load(
        module,
        "def reward(*, prompt, completion, context):\n"
        "    return 1.0 if (prompt, completion, context) == ('1+1?', '2', {'answer': '2'}) else 0.0\n",
    )
    assert (await reward.score(PROMPT, "2", {"answer": "2"})).reward == 1.0
    assert (await reward.score(PROMPT, "3", {"answer": "2"})).reward == 0.0
    ref = reward.refs[0]
    assert (ref.name, ref.id, len(ref.revision)) == ("default", "function:rewards_of_a_test:reward", 64)
    await reward.close()


async def test_an_async_function(module: Path) -> None:
    reward = load(
        module,
        "import asyncio\nasync def reward(prompt, completion, context):\n    await asyncio.sleep(0)\n    return 3\n",
    )
    assert (await reward.score(PROMPT, "", {})).reward == 3.0
    await reward.close()


async def test_a_changed_file_is_another_revision(module: Path) -> None:
    first = load(module, "def reward(prompt, completion, context): return 1\n")
    sys.modules.pop("rewards_of_a_test")
    second = load(module, "def reward(prompt, completion, context): return 22\n")
    assert first.refs[0].revision != second.refs[0].revision


async def test_plain_functions_run_beside_each_other_and_off_the_event_loop() -> None:
    together = threading.Barrier(4)

    def reward(**_: object) -> float:
        return float(together.wait(5) >= 0)

    model = FunctionReward(reward, "function:m:f", "revision")
    scores = await asyncio.gather(*(model.score(PROMPT, "a", {}) for _ in range(4)))
    assert [each.reward for each in scores] == [1.0] * 4
    await model.close()


@pytest.mark.parametrize(
    ("value", "reward"), [(0.5, 0.5), (2, 2.0), (True, 1.0), (np.float32(0.5), 0.5), (Fraction(1, 2), 0.5)]
)
def test_numbers_are_rewards(value: object, reward: float) -> None:
    assert (as_score(value).status, as_score(value).reward) == (CandidateStatus.SCORED, reward)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan"), 10**400])
def test_what_is_not_finite_is_marked(value: object) -> None:
    assert (as_score(value).status, as_score(value).reward) == (CandidateStatus.NON_FINITE, None)


@pytest.mark.parametrize("value", [None, "1.0", [1.0], {"reward": 1.0}, 1j])
def test_anything_else_fails_and_names_its_type(value: object) -> None:
    failed = as_score(value)
    assert (failed.status, failed.reward) == (CandidateStatus.FAILED, None)
    assert failed.error is not None and type(value).__name__ in failed.error


@pytest.mark.parametrize(
    "error", [ValueError, KeyError, StopIteration, SystemExit, RecursionError, asyncio.CancelledError]
)
@pytest.mark.parametrize("kind", ["plain", "async", "lambda"])
async def test_a_raised_error_fails_that_completion_without_telling_it(
    error: type[BaseException], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(*, prompt: str, completion: str, context: object) -> float:
        raise error(completion)

    async def asynchronous(*, prompt: str, completion: str, context: object) -> float:
        raise error(completion)

    functions = {"plain": plain, "async": asynchronous, "lambda": lambda **given: asynchronous(**given)}
    with caplog.at_level(logging.DEBUG):
        failed = await score(functions[kind])
    # A generator's StopIteration leaves a coroutine as RuntimeError.
    expected = "RuntimeError" if error is StopIteration and kind != "plain" else error.__name__
    assert (failed.status, failed.error) == (CandidateStatus.FAILED, expected)
    assert expected in caplog.text
    assert SECRET not in caplog.text


async def test_cancelling_a_score_cancels_the_async_function() -> None:
    ended = asyncio.Event()

    async def slow(**_: object) -> float:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 0.0

    reward = FunctionReward(slow, "function:m:f", "revision")
    scoring = asyncio.ensure_future(reward.score(PROMPT, "a", {}))
    await asyncio.sleep(0.01)
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    assert ended.is_set()


async def test_close_does_not_wait_for_a_function_that_hangs() -> None:
    release = threading.Event()
    reward = FunctionReward(lambda **_: float(release.wait(30)), "function:m:f", "revision")
    scoring = asyncio.ensure_future(reward.score(PROMPT, "a", {}))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await reward.close()
    assert time.monotonic() - began < 1
    release.set()
    await scoring


class Callable:
    """An object that can be called, asynchronously."""

    async def __call__(self, *, prompt: str, completion: str, context: object) -> float:
        return 7.0


async def test_an_object_with_an_async_call() -> None:
    assert (await score(Callable())).reward == 7.0


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("function:", "function:module:name"),
        ("function:rewards_of_a_test", "function:module:name"),
        ("function::reward", "function:module:name"),
        ("function:a:b:c", "function:module:name"),
        ("function:no_such_module_here:reward", "no module no_such_module_here"),
        ("function:rewards_of_a_test.inner:reward", "no_such|rewards_of_a_test"),
        ("function:rewards_of_a_test:other", "has no 'other'"),
        ("function:rewards_of_a_test:number", "int"),
        ("function:rewards_of_a_test:narrow", "keyword arguments"),
        ("function:sys:exit", "keyword arguments"),
    ],
)
def test_specs_that_cannot_work_stop_the_start_in_one_sentence(spec: str, says: str, module: Path) -> None:
    module.write_text("number = 3\ndef narrow(text): return 1.0\n")
    with pytest.raises(StartupError, match=says) as caught:
        FunctionReward.from_spec(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import no_such_module_here", "needs the module no_such_module_here"),
        ("def reward(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("1/0", "ZeroDivisionError"),
    ],
)
def test_modules_that_cannot_be_imported(body: str, says: str, module: Path) -> None:
    with pytest.raises(StartupError, match=says):
        load(module, body)
