"""Moved answers: verdicts kept, operands of the training split only, wording the policy's."""

from __future__ import annotations

import random

import pytest

from bon_server.demo.problems import Problem, is_right, problems, split_of
from bon_server.demo.samples import Moves, Sampled

POOL = problems("train", {"chain_sum": 200, "basic_arithmetic": 200, "products": 30})
PROMPT = "State the final answer to the following arithmetic problem: {} ="


def _move(text: str, source: tuple[str, str], target: tuple[str, str]) -> str:
    """`text` moved from one sum to another; each is (expression, answer)."""
    first, second = (
        Problem("chain_sum", PROMPT.format(expression), answer, ()) for expression, answer in (source, target)
    )
    return Moves([second], random.Random(0)).move(Sampled(first, (text,))).completions[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("17 + 41 = 58.", "62 + 25 = 87."),
        ("The answer is 58", "The answer is 87"),
        ("17 + 41 = 60", "62 + 25 = 89"),
        ("17 + 41 = 60. It is 60.", "62 + 25 = 89. It is 89."),
        ("17 + 41", "62 + 25"),
        ("41 and 17 make 58, in 3 steps: 58", "25 and 62 make 87, in 3 steps: 87"),
        ("58.5", "58.5"),
        ("17 + 41 = -3", "62 + 25 = -3"),
        ("no number", "no number"),
        ("", ""),
    ],
)
def test_numbers_move_with_the_problem(before: str, after: str) -> None:
    assert _move(before, ("17 + 41", "58"), ("62 + 25", "87")) == after


def test_negative_answers_keep_their_sign() -> None:
    assert _move("5 - 9 = -4.", ("5 - 9", "-4"), ("1 - 7", "-6")) == "1 - 7 = -6."


@pytest.mark.parametrize("target", [("62 - 25", "37"), ("6 + 2", "8"), ("7 + 62", "69")])
def test_only_between_problems_of_one_form(target: tuple[str, str]) -> None:
    assert _move("17 + 41 = 58.", ("17 + 41", "58"), target) == "17 + 41 = 58."


@pytest.mark.parametrize("wording", ["The answer is {}.", "{}", "So it = {}, of course"])
def test_verdicts_and_split_over_the_pool(wording: str) -> None:
    moves = Moves(POOL, random.Random(1))
    for problem in POOL[::5]:
        sampled = Sampled(problem, (wording.format(problem.answer), wording.format(999), "none"))
        moved = moves.move(sampled)
        assert [is_right(moved.problem, text) for text in moved.completions] == [True, False, False]
        assert split_of(moved.problem.operands) == "train"


def test_seeded() -> None:
    sampled = [Sampled(problem, (problem.answer,)) for problem in POOL[:50]]
    runs = [[Moves(POOL, random.Random(seed)).move(one) for one in sampled] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
