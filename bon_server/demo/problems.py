"""Arithmetic problems with exact answers, in three splits that share no operands.

The problems come from reasoning-gym: `chain_sum` (2 terms, 1 to 2 digits), `basic_arithmetic` and `products` (2 terms,
1 digit). Each task is one fixed stream; a problem's split depends on its operands alone, as an unordered pair of
absolute values: all of 7 * 8, 8 - 7, -7 + 8 lie in one split, whatever the task, the operation or the order. So a
reward model is measured on pairs of numbers that it never saw together. (One-digit pairs are few, 55, hence the small
share of products.)
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Literal

import reasoning_gym
from reasoning_gym.factory import get_score_answer_fn

Split = Literal["train", "development", "test"]

STREAM_SEED = 20261122
STREAM_LIMIT = 60_000  # problems looked at per task before a split counts as exhausted

TASKS: dict[str, dict[str, int]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
}

_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """One question with its exact answer."""

    task: str
    """Name of the reasoning-gym task."""
    prompt: str
    """The question: the whole content of the one user message."""
    answer: str
    """The exact result, an integer in decimal."""
    operands: tuple[int, ...]
    """Absolute values of the numbers in the question, ascending."""


def problems(split: Split, counts: dict[str, int]) -> list[Problem]:
    """Returns the first `counts[task]` distinct problems of each task in a split, always the same ones.

    Raises:
        ValueError: an unknown task, or the split has fewer problems of a task than asked.
    """
    unknown = sorted(set(counts) - set(TASKS))
    if unknown:
        raise ValueError(f"counts: unknown task {unknown[0]!r}; allowed: {', '.join(TASKS)}")
    return [problem for task, count in counts.items() for problem in _first(task, split, count)]


def split_of(operands: tuple[int, ...]) -> Split:
    """Returns the split of a sorted tuple of absolute operands: 55 % train, 15 % development, 30 % test."""
    digest = hashlib.sha256(",".join(map(str, operands)).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.55 else "development" if share < 0.70 else "test"


def is_right(problem: Problem, completion: str) -> bool:
    """Says whether the last number of a completion is the exact answer, by reasoning-gym's own scorer.

    The policy answers in sentences ("The final answer is 12.", "3 + 9 = 12"), so the last number written counts as its
    answer. An answer followed by another number, such as a remark, counts as wrong; no number at all does too.
    """
    number = last_number(completion)
    if number is None:
        return False
    return float(_scorer(problem.task)(number, {"answer": problem.answer})) == 1.0


def last_number(text: str) -> str | None:
    """Returns the last number of a text in its shortest decimal form ("1,200.0" gives "1200"), or None.

    A minus is a sign where no operand stands before it: "= -4" and "is -4" give "-4", "9 - 4" gives "4".
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    value = Decimal(matches[-1].group().replace(",", ""))
    if _is_negated(text[: matches[-1].start()]):
        value = -value
    if value == value.to_integral_value():
        return str(int(value))
    return format(value.normalize(), "f")


def _is_negated(before: str) -> bool:
    """Whether a text ends in a minus that is a sign: no number or bracket before it, no letter touching it."""
    if not before.endswith("-") or before[-2:-1].isalpha():
        return False
    return not before[:-1].rstrip().endswith(tuple("0123456789)"))


def _first(task: str, split: Split, count: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    stream = reasoning_gym.create_dataset(task, seed=STREAM_SEED, size=STREAM_LIMIT, **TASKS[task])
    for index in range(STREAM_LIMIT):
        if len(found) == count:
            return list(found.values())
        entry = stream[index]
        numbers = re.findall(r"\d+", entry["metadata"]["expression"])
        operands = tuple(sorted(map(int, numbers)))
        if split_of(operands) == split:
            found.setdefault(entry["question"], Problem(task, entry["question"], entry["answer"], operands))
    raise ValueError(f"counts: {count} {task} problems asked for, the {split} split has {len(found)}")


@cache
def _scorer(task: str):  # type: ignore[no-untyped-def]
    return get_score_answer_fn(task)
