"""Sampled answers moved to other training problems: more numbers to learn from than were sampled.

"17 + 41 = 58." (right) becomes "62 + 25 = 87." for the problem 62 + 25, and "17 + 41 = 60." (wrong by 2) becomes
"62 + 25 = 89.": the wording, the verdict and the size of the error are the policy's own, the numbers are new. Targets
have the same form, task and digits, and come from the training split alone; the verifier confirms every verdict.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from bon_server.demo.problems import Problem, is_right, last_number
from bon_server.demo.samples import Sampled

_DIGITS = re.compile(r"\d+")
_Form = tuple[str, str, bool]
_EXPRESSION = re.compile(r"problem: (.*) =$|^Calculate (.*)\.$|multiplication: (.*)\. Give only")


class Moves:
    """Moves answers to problems of a pool that differ from theirs in the operands alone."""

    def __init__(self, pool: Sequence[Problem], random_: random.Random) -> None:
        self._random = random_
        self._targets: dict[_Form, list[Problem]] = defaultdict(list)
        for problem in pool:
            self._targets[_form(problem)].append(problem)

    def move(self, sampled: Sampled) -> Sampled:
        """Returns all answers of one problem moved to another; the same when one would change its verdict."""
        source, targets = sampled.problem, self._targets[_form(sampled.problem)]
        if not targets:
            return sampled
        target = self._random.choice(targets)
        texts = tuple(_rewrite(text, source, target) for text in sampled.completions)
        if any(
            is_right(source, old) != is_right(target, new) for old, new in zip(sampled.completions, texts, strict=True)
        ):
            return sampled
        return Sampled(target, texts)


def _form(problem: Problem) -> _Form:
    """The question with # for each digit, and its answer's sign: 17 + 41 and 62 + 25 are of one form, 7 + 1 is not."""
    return problem.task, re.sub(r"\d", "#", _expression(problem)), problem.answer.startswith("-")


def _expression(problem: Problem) -> str:
    match = _EXPRESSION.search(problem.prompt)
    if match is None:
        raise ValueError(f"problem: no expression found in {problem.prompt!r}")
    return str(next(group for group in match.groups() if group is not None))


def _rewrite(text: str, source: Problem, target: Problem) -> str:
    """Operands become the target's; the number answered keeps its distance to the exact answer; other numbers stay."""
    number = last_number(text)
    old = [int(digits) for digits in _DIGITS.findall(_expression(source))]
    new = [int(digits) for digits in _DIGITS.findall(_expression(target))]
    said = int(number) if number is not None and "." not in number else None
    answered = None if said is None else int(target.answer) + said - int(source.answer)
    if said is not None and answered is not None and (answered < 0) != (said < 0):
        answered = said  # the policy forgets most signs: a distance must not invent one
    matches = list(_DIGITS.finditer(text))
    pieces, end = [], 0
    for match in matches:
        value, between = int(match.group()), text[end : match.start()]
        is_answer = said is not None and value == abs(said) and (match is matches[-1] or value not in old)
        copied = value in old and not (match is matches[-1] and said == int(source.answer))
        if copied:
            pieces += [between, str(new[old.index(value)])]
        elif is_answer and answered is not None:
            bare = between.removesuffix("-") if match is matches[-1] and said is not None and said < 0 else between
            pieces += [bare, str(answered)]
        else:
            pieces += [between, match.group()]
        end = match.end()
    return "".join(pieces) + text[end:]
