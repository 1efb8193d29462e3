"""Questions of the demo that its reward model was not trained on, and an exact judge of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bon_server.demo.evaluate import COUNTS
from bon_server.demo.problems import Problem, Split, is_right, problems
from bon_server.demo.train_reward import TRAIN_COUNTS

SKIPPED: dict[Split, dict[str, int]] = {"train": TRAIN_COUNTS, **COUNTS}
"""The first problems of each split: the reward model was trained on them, its recipe chosen on them, or its figures
taken on them."""
SHARES = {"chain_sum": 0.55, "basic_arithmetic": 0.45}
"""Of the tasks. Products of two digits are so few that the reward model has seen nearly all of them."""


def write_questions(split: Split, count: int, file: Path) -> None:
    """Writes `count` problems of a split as lines for `bon harvest`, the tasks mixed evenly."""
    wanted = {task: round(share * count) for task, share in SHARES.items()}
    skipped = SKIPPED[split]
    found = problems(split, {task: skipped[task] + number for task, number in wanted.items()})
    mixed: list[tuple[float, Problem]] = []
    for task, number in wanted.items():
        some = [problem for problem in found if problem.task == task][skipped[task] :]
        mixed += [((place + 0.5) / number, problem) for place, problem in enumerate(some)]
    mixed.sort(key=lambda one: one[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(_line(problem) for _, problem in mixed), encoding="utf-8")


def gold(*, prompt: str, completion: str, context: Mapping[str, str]) -> float:
    """1 if the last number of the completion is the exact answer, else 0."""
    return float(is_right(Problem(context["task"], prompt, context["answer"], ()), completion))


def _line(problem: Problem) -> str:
    context = {"task": problem.task, "answer": problem.answer}
    return json.dumps({"prompt": problem.prompt, "reward_context": context}) + "\n"
