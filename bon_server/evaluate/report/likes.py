"""What the reward model seems to like: what winners have more often than the other answers to the same prompts.

A look, not a test: dozens of features and all words are compared at once, so some differences are chance. Those shown
have at least three standard errors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from bon_server.evaluate.report.sample import SampledRequest

STANDARD_ERRORS = 3.0
MOST_WORDS = 12
_WORD = re.compile(r"[^\W\d_]{2,}")
_FEATURES: dict[str, Callable[[str], bool]] = {
    "has a list": lambda text: re.search(r"(?m)^\s*([-*•]|\d+[.)])\s", text) is not None,
    "has a heading or bold text": lambda text: re.search(r"(?m)^#+ |\*\*", text) is not None,
    "has a code block": lambda text: "```" in text,
    "has several paragraphs": lambda text: "\n\n" in text.strip(),
    "has a digit": lambda text: re.search(r"\d", text) is not None,
    "asks a question": lambda text: "?" in text,
    "has an exclamation mark": lambda text: "!" in text,
    "speaks of itself (I, my)": lambda text: re.search(r"\b(I|my|My)\b", text) is not None,
    "ends in a full stop": lambda text: text.rstrip().endswith("."),
    "declines or apologises": lambda text: re.search(r"(?i)\b(sorry|cannot|can't|unable to)\b", text) is not None,
    "is empty": lambda text: not text.strip(),
}


class Liking(NamedTuple):
    """How often something is in winners and in the other answers to the same prompts."""

    what: str
    winners: float
    others: float

    @property
    def difference(self) -> float:
        """Positive: winners have it more often."""
        return self.winners - self.others


def features(requests: Sequence[SampledRequest]) -> list[Liking]:
    """Features that differ, the largest difference first."""
    answers = [_answers(request) for request in requests]
    found = [_compared(what, [[has(text) for text in texts] for texts in answers]) for what, has in _FEATURES.items()]
    return sorted((one for one in found if one is not None), key=lambda one: -abs(one.difference))


def words(requests: Sequence[SampledRequest]) -> list[Liking]:
    """Words that differ, those that winners have more often first."""
    answers = [[set(_WORD.findall(text.lower())) for text in _answers(request)] for request in requests]
    counts = Counter(word for request in answers for word in set[str]().union(*request))
    often = [word for word, count in counts.most_common(500) if count >= 10]
    found = [_compared(word, [[word in text for text in texts] for texts in answers]) for word in often]
    liked = sorted((one for one in found if one is not None), key=lambda one: -abs(one.difference))[:MOST_WORDS]
    return sorted(liked, key=lambda one: -one.difference)


def _answers(request: SampledRequest) -> list[str]:
    """The winner's text, then the others'."""
    return [candidate.text for candidate in request.scored]


def _compared(what: str, has: Sequence[Sequence[bool]]) -> Liking | None:
    """None unless the mean difference within prompts is several standard errors from 0."""
    differences = [float(row[0]) - fmean(row[1:]) for row in has]
    if len(differences) < 2:
        return None
    mean = fmean(differences)
    squares = sum((one - mean) ** 2 for one in differences)
    error = (squares / (len(differences) - 1) / len(differences)) ** 0.5
    if mean == 0 or abs(mean) < STANDARD_ERRORS * error:
        return None
    return Liking(what, fmean(float(row[0]) for row in has), fmean(fmean(row[1:]) for row in has))
