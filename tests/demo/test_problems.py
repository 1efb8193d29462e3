"""The demo's problems: fixed, distinct, split by operands; and the verifier that labels completions."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations

import pytest

from bon_server.demo.evaluate import COUNTS
from bon_server.demo.problems import TASKS, Problem, is_right, last_number, problems, split_of
from bon_server.demo.train_reward import TRAIN_COUNTS


@cache
def _all() -> dict[str, list[Problem]]:
    return {
        "train": problems("train", TRAIN_COUNTS),
        "development": problems("development", COUNTS["development"]),
        "test": problems("test", COUNTS["test"]),
    }


def test_splits_share_no_operands() -> None:
    operands = {split: {problem.operands for problem in chosen} for split, chosen in _all().items()}
    for first, second in combinations(operands, 2):
        assert not operands[first] & operands[second]


def test_operands_are_those_of_the_question() -> None:
    for problem in problems("development", COUNTS["development"]):
        assert problem.operands == tuple(sorted(int(number) for number in re.findall(r"\d+", problem.prompt)))
        assert len(problem.operands) == 2


def test_order_sign_and_operation_do_not_matter() -> None:
    assert split_of((7, 8)) == split_of(tuple(sorted((8, 7))))
    prompts = {problem.prompt for split in _all().values() for problem in split}
    assert any(" - " in prompt for prompt in prompts) and any(" * " in prompt for prompt in prompts)


def test_sizes_and_distinct() -> None:
    chosen = _all()
    assert len(chosen["test"]) == 300 and len(chosen["development"]) == 100
    for split in chosen.values():
        assert len({problem.prompt for problem in split}) == len(split)
        assert {problem.task for problem in split} == set(TASKS)


def test_same_problems_every_time() -> None:
    assert problems("test", {"products": 3}) == problems("test", {"products": 3})
    assert problems("test", {"products": 3}) == problems("test", {"products": 5})[:3]


def test_unknown_task_and_too_many() -> None:
    with pytest.raises(ValueError, match="unknown task 'sums'; allowed: chain_sum"):
        problems("test", {"sums": 1})
    with pytest.raises(ValueError, match="counts: 200 products problems asked for"):
        problems("test", {"products": 200})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The final answer is 12.", "12"),
        ("3 + 9 = 12", "12"),
        ("3 + 9 = 12\n\nSo the answer is **12**.", "12"),
        ("5 - 9 = -4", "-4"),
        ("5 - 9 = \N{MINUS SIGN}4.", "-4"),
        ("The result is 9 - 4", "4"),
        ("9 -4", "4"),
        ("(3) -4", "4"),
        ("x-4", "4"),
        ("The answer is -4", "-4"),
        ("1,200 apples", "1200"),
        ("12.0", "12"),
        ("12.50", "12.5"),
        ("007", "7"),
        ("-0", "0"),
        ("=-18", "-18"),
        ("no idea", None),
        ("", None),
        ("4 is 9 - 5", "5"),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize("task", list(TASKS))
def test_verdicts(task: str) -> None:
    problem = Problem(task, "?", "-12", (3, 15))
    assert is_right(problem, "The answer is: -12.")
    assert is_right(problem, "3 - 15 = -12.0")
    assert not is_right(problem, "3 - 15 = 12")
    assert not is_right(problem, "-120")
    assert not is_right(problem, "-12.5")
    assert not is_right(problem, "minus twelve")
    assert not is_right(problem, "-12, which is 3 less than -9")


def test_every_gold_answer_is_right() -> None:
    for split in _all().values():
        for problem in split:
            assert is_right(problem, f"= {problem.answer}")
            assert not is_right(problem, f"= {int(problem.answer) + 1}")
