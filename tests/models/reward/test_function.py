"""Rewards by a function: what it is given, what it may return.

What it may do wrong is in tests/operator_code/test_function_faults.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bon_server.core.errors import StartupError
from bon_server.core.types import CandidateStatus, Message, Prompt
from bon_server.models.reward.function import FunctionReward, as_score

PROMPT = Prompt(messages=(Message("user", "1+1?"),))


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


async def test_an_object_with_an_async_call() -> None:
    reward = FunctionReward.from_spec("function:tests.models.reward.odd_rewards:scorer")
    assert (await reward.score(PROMPT, "a", {})).reward == 7.0
    await reward.close()


async def test_what_a_module_prints_while_it_is_imported_does_not_reach_stdout(
    module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(module, "print('hello')\ndef reward(prompt, completion, context): return 1\n")
    assert capsys.readouterr().out == ""


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
        ("raise GeneratorExit", "GeneratorExit"),
        ("class E(BaseException): pass\nraise E", "raised E"),
        ("1/0", "ZeroDivisionError"),
    ],
)
def test_modules_that_cannot_be_imported(body: str, says: str, module: Path) -> None:
    with pytest.raises(StartupError, match=says):
        load(module, body)
