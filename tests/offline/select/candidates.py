"""Candidates to choose from, as brute force sees them and as the rules do, and the rules said again, simply."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from bon_server.core.selection import OfflineRule
from bon_server.offline.select.rows import CANDIDATE, Rows
from bon_server.offline.select.rules import Rule

Place = tuple[int, int, int]


class One(NamedTuple):
    """A candidate."""

    prompt: int
    reward: float
    """NaN or infinite: it has none."""
    place: Place
    text: str
    random: float


rewards = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf])


@st.composite
def candidates(draw: st.DrawFn) -> list[One]:
    """Ragged requests of few prompts, with many ties, equal texts, and requests without any candidate."""
    found = []
    for ordinal in range(draw(st.integers(0, 7))):
        prompt, writer = draw(st.integers(0, 2)), draw(st.integers(0, 1))
        for index, reward in enumerate(draw(st.lists(rewards, max_size=5))):
            text = draw(st.sampled_from("abc"))
            random = draw(st.floats(0, 1, exclude_max=True, width=16))
            found.append(One(prompt, reward, (writer, ordinal, index), text, random))
    return found


def as_rows(some: Sequence[One]) -> Rows:
    """The same for the rules."""
    rows = np.zeros(len(some), dtype=CANDIDATE)
    for row, one in zip(rows, some, strict=True):
        row["hi"], row["lo"] = one.prompt % 2, one.prompt
        row["value"], row["random"] = one.reward, one.random
        row["writer"], row["ordinal"], row["index"] = one.place
        row["text_hi"] = row["text_lo"] = int.from_bytes(hashlib.sha256(one.text.encode()).digest()[:8], "big")
    return rows


_PARAMETERS: dict[OfflineRule, dict[str, Any]] = {
    OfflineRule.BEST_PER_PROMPT: {},
    OfflineRule.TOP_K_PER_PROMPT: {"k": st.integers(1, 4)},
    OfflineRule.TOP_K_OVERALL: {"k": st.integers(1, 9), "max_per_prompt": st.one_of(st.none(), st.integers(1, 3))},
    OfflineRule.THRESHOLD: {"threshold": st.sampled_from([-2.0, 0.0, 0.25, 0.3])},
    OfflineRule.PAIRS: {"margin": st.sampled_from([0.0, 0.5]), "against": st.sampled_from(["worst", "random"])},
    OfflineRule.SOFT: {"k": st.integers(1, 3), "temperature": st.sampled_from([0.1, 2.0])},
}
some_rules = st.one_of(
    [
        st.builds(Rule, st.sampled_from([shape, OfflineRule(f"random-{shape}")]), **parameters)
        for shape, parameters in _PARAMETERS.items()
    ]
    + [
        st.builds(
            Rule,
            st.sampled_from([OfflineRule.THRESHOLD, OfflineRule.RANDOM_THRESHOLD]),
            quantile=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        ),
        st.builds(
            Rule,
            st.sampled_from([OfflineRule.SOFT, OfflineRule.RANDOM_SOFT]),
            temperature=st.sampled_from([0.1, 2.0]),
            weights=st.just(True),
        ),
    ]
)


def _first(some: Sequence[One], key: Callable[[One], float]) -> list[One]:
    """Highest first, ties in log order."""
    return sorted(some, key=lambda one: (-key(one), one.place))


def _key(rule: Rule) -> Callable[[One], float]:
    if rule.name.is_random:
        return lambda one: one.random
    if rule.name is OfflineRule.SOFT:
        return lambda one: one.reward / rule.temperature - math.log(-math.log(one.random + 2.0**-54))
    return lambda one: one.reward


def _reaching(rule: Rule, group: Sequence[One]) -> int:
    """How many of a prompt reach its threshold."""
    cut = rule.threshold
    if rule.quantile is not None:
        # The least reward that at least this share of all is at or below.
        ascending = sorted(one.reward for one in group)
        share = [sum(other <= value for other in ascending) / len(ascending) for value in ascending]
        cut = next(value for value, below in zip(ascending, share, strict=True) if below >= rule.quantile - 1e-9)
    assert cut is not None
    return sum(one.reward >= cut for one in group)


def _pairs(rule: Rule, group: Sequence[One]) -> list[One]:
    best = _first(group, lambda one: one.reward)[0]
    lower = [
        one
        for one in group
        if one.text != best.text and best.reward > one.reward and best.reward - one.reward >= rule.margin
    ]
    if not lower:
        return []
    if not rule.name.is_random:
        order = (lambda one: one.random) if rule.against == "random" else (lambda one: -one.reward)
        return [best, _first(lower, order)[0]]
    chosen = _first(group, lambda one: one.random)[0]
    return [chosen, _first([one for one in group if one.text != chosen.text], lambda one: one.random)[0]]


def expected(rule: Rule, some: Sequence[One]) -> list[One]:
    """What a rule must pick, without the order; of pairs, the chosen one before the rejected one."""
    groups: dict[int, list[One]] = defaultdict(list)
    for one in some:
        if math.isfinite(one.reward):
            groups[one.prompt].append(one)
    picked: list[One] = []
    for group in groups.values():
        ordered = _first(group, _key(rule))
        match rule.name.shape:
            case OfflineRule.BEST_PER_PROMPT:
                picked += ordered[:1]
            case OfflineRule.TOP_K_OVERALL:
                picked += ordered[: rule.max_per_prompt]
            case OfflineRule.THRESHOLD:
                picked += ordered[: _reaching(rule, group)]
            case OfflineRule.PAIRS:
                picked += _pairs(rule, group)
            case _:
                picked += ordered if rule.weights else ordered[: rule.k]
    return _first(picked, _key(rule))[: rule.k] if rule.is_overall else picked
