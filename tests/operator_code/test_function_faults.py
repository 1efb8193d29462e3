"""Reward functions that hang, die, raise and print: each costs its own candidate, and no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import RewardFailed, StartupError
from bon_server.core.types import CandidateStatus, Prompt, Score
from bon_server.models.reward.function import FunctionReward
from bon_server.operator_code import pool as pool_module
from tests.models.reward.odd_rewards import ERRORS
from tests.waiting import SOON_S, until

PROMPT = Prompt(text="p")
KINDS = ("plain", "asynchronous", "waits")
TIMEOUT_S = 0.3

Make = Callable[..., FunctionReward]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """`make("plain")`; closed when the test ends."""
    async with AsyncExitStack() as made:

        def one(name: str, timeout_s: float = TIMEOUT_S, processes: int = 2) -> FunctionReward:
            config = RewardConfig(timeout_s=timeout_s, processes=processes)
            reward = FunctionReward.from_spec(f"function:tests.models.reward.odd_rewards:{name}", config=config)
            made.push_async_callback(reward.close)
            return reward

        yield one


async def scores(reward: FunctionReward, *completions: str, path: Path | None = None) -> list[Score]:
    """Of completions that are asked about at the same time."""
    context = {} if path is None else {"path": str(path)}
    asked = (reward.score(PROMPT, one, context) for one in completions)
    return await asyncio.wait_for(asyncio.gather(*asked), 2 * SOON_S)


def failed(score: Score) -> str | None:
    """Why."""
    assert (score.status, score.reward) == (CandidateStatus.FAILED, None)
    return score.error


@pytest.mark.parametrize("hang", ["sleep", "backtrack", "c_loop", "with_child"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_hangs_is_ended_and_the_next_one_is_scored(make: Make, kind: str, hang: str) -> None:
    reward = make(kind)
    assert failed((await scores(reward, hang))[0]) == "timeout"
    assert (await scores(reward, "abc"))[0].reward == 3.0


@pytest.mark.parametrize("hang", ["wait", "stubborn"])
async def test_an_async_call_that_hangs_is_ended_beside_others(make: Make, hang: str) -> None:
    first, second = await scores(make("asynchronous", processes=1), hang, "abc")
    assert (failed(first), second.reward) == ("timeout", 3.0)


@pytest.mark.parametrize("kind", KINDS)
async def test_eight_that_hang_and_then_a_good_one(make: Make, kind: str) -> None:
    *hung, good = await scores(make(kind), *["sleep"] * 8, "abc")
    assert {failed(one) for one in hung} == {"timeout"}
    assert good.reward == 3.0


@pytest.mark.parametrize("death", ["exit", "segfault", "killed"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_process_that_dies_costs_the_call_that_killed_it(make: Make, kind: str, death: str) -> None:
    reward = make(kind, timeout_s=SOON_S)
    first, *others = await scores(reward, death, *["abc"] * 20)
    assert failed(first) == "worker died"
    assert [one.reward for one in others] == [3.0] * 20


async def test_text_that_is_no_unicode_fails_alone(make: Make) -> None:
    first, second = await scores(make("plain", timeout_s=SOON_S), "\ud800", "abc")
    assert (failed(first), second.reward) == ("UnicodeEncodeError", 3.0)


async def test_many_that_die_are_answered_all_the_same(make: Make) -> None:
    results = await scores(make("plain", timeout_s=SOON_S), *["exit"] * 5, "abc")
    assert [failed(one) for one in results[:5]] == ["worker died"] * 5
    assert results[5].reward == 3.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", ERRORS)
async def test_whatever_is_raised_fails_that_completion_without_telling_it(
    make: Make, kind: str, error: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    reward = make(kind, timeout_s=SOON_S)
    with caplog.at_level(logging.DEBUG):
        first, second = await scores(reward, f"raise {error}", "abc")
    # A generator's StopIteration leaves a coroutine as RuntimeError.
    expected = "RuntimeError" if error == "StopIteration" and kind != "plain" else error
    assert (failed(first), second.reward) == (expected, 3.0)
    assert f"raised {expected} at odd_rewards.py:" in caplog.text
    assert "raise " not in caplog.text and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "says"),
    [("None", "NoneType"), ("str", "str"), ("dict", "dict"), ("Tensor", "Tensor"), ("array", "ndarray")],
)
async def test_what_is_no_number_names_its_type(make: Make, value: str, says: str) -> None:
    (score,) = await scores(make("plain"), f"return {value}")
    assert failed(score) == f"the function returned {says}, not a number"


async def test_numbers_of_other_kinds(make: Make) -> None:
    results = await scores(make("plain", timeout_s=SOON_S), *[f"return {one}" for one in ("float32", "nan", "large")])
    assert [one.reward for one in results] == [0.5, None, None]
    assert [one.status for one in results[1:]] == [CandidateStatus.NON_FINITE] * 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_number_that_cannot_be_read(make: Make, kind: str) -> None:
    assert failed((await scores(make(kind), "return broken"))[0]) == "Ending"


@pytest.mark.parametrize("kind", KINDS)
async def test_what_it_prints_does_not_reach_stdout(make: Make, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert (await scores(make(kind, timeout_s=SOON_S), "print hello"))[0].reward == 11.0
    assert capfd.readouterr().out == ""


async def test_async_calls_run_beside_each_other(make: Make, tmp_path: Path) -> None:
    results = await scores(
        make("asynchronous", timeout_s=SOON_S, processes=1), "together", "together", path=tmp_path / "count"
    )
    assert [one.reward for one in results] == [8.0, 8.0]


async def test_cancelling_a_score_cancels_the_async_function(make: Make, tmp_path: Path) -> None:
    reward, path = make("asynchronous", timeout_s=SOON_S), tmp_path / "ended"
    scoring = asyncio.ensure_future(reward.score(PROMPT, "cancelled", {"path": str(path)}))
    await scores(reward, "abc")
    scoring.cancel()
    await until(path.exists)


async def test_a_call_that_nobody_waits_for_does_not_keep_others_waiting(make: Make) -> None:
    reward = make("plain", timeout_s=600, processes=1)
    await scores(reward, "abc")
    hanging = asyncio.ensure_future(reward.score(PROMPT, "sleep", {}))
    await asyncio.sleep(0.05)
    hanging.cancel()
    assert (await scores(reward, "abc"))[0].reward == 3.0


async def test_close_does_not_wait_for_a_function_that_hangs(make: Make) -> None:
    reward = make("plain", timeout_s=600)
    scoring = asyncio.ensure_future(reward.score(PROMPT, "backtrack", {}))
    await scores(reward, "abc")
    async with asyncio.timeout(SOON_S):
        await reward.close()
        with pytest.raises(RewardFailed):
            await scoring
    with pytest.raises(RewardFailed):
        await scores(reward, "abc")


FLAKY = """
import os, pathlib, time
if pathlib.Path("broken").exists():
    {broken}
def reward(*, prompt, completion, context):
    return os._exit(1) if completion == "exit" else 1.0
"""


def flaky(folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> FunctionReward:
    """Of a module that cannot be imported while there is a file `broken`."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    name = f"flaky_{abs(hash(folder))}"
    (folder / f"{name}.py").write_text(FLAKY.format(broken=broken))
    config = RewardConfig(timeout_s=SOON_S, processes=1)
    return FunctionReward.from_spec(f"function:{name}:reward", config=config)


async def test_a_function_that_can_be_loaded_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = flaky(tmp_path, monkeypatch, "1/0")
    monkeypatch.setattr(pool_module, "MAX_BACK_OFF_S", 0.01)
    await reward.start()
    (tmp_path / "broken").touch()
    assert failed((await scores(reward, "exit"))[0]) == "worker died"
    with pytest.raises(RewardFailed, match="raised ZeroDivisionError"):
        await scores(reward, "abc")
    assert not reward.healthy
    await reward.close()


async def test_a_function_that_cannot_be_loaded_in_a_process_is_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = flaky(tmp_path, monkeypatch, "1/0")
    (tmp_path / "broken").touch()
    with pytest.raises(StartupError, match="raised ZeroDivisionError"):
        await reward.start()
    await reward.close()


async def test_an_import_that_hangs_is_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = flaky(tmp_path, monkeypatch, "time.sleep(1000)")
    await reward.start()
    assert reward.engines[0].stalled_s == 0.0
    (tmp_path / "broken").touch()
    await scores(reward, "exit")
    await until(lambda: reward.engines[0].stalled_s > 0.1)
    await reward.close()
