"""The offline rules: pure functions of the candidates of whole prompts, of their rewards, texts and random numbers.

    best-per-prompt    the highest reward
    top-k-per-prompt   the k highest
    top-k-overall      the k highest of all prompts together, of each prompt at most `max_per_prompt`
    threshold          all at or above `threshold`, or above that share of their prompt's rewards, `quantile`
    pairs              the highest, chosen, against the lowest, or a random lower one, rejected; at least `margin` apart
    soft               k draws without replacement in proportion to exp(reward / temperature); or all, with that weight

    random-…           as many, at random: see `OfflineRule`. For `pairs`, two of each prompt that has a pair; for
                       weights, the weights of the prompt dealt out anew.

Ties go to the first in the log. Two candidates with the same text are never a pair. Random numbers belong to seed and
candidate (`selection.random_priority`), so that nothing depends on what else is read, or on the order of reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.core.selection import OfflineRule
from bon_server.offline.select.rows import PICK, PLACE, Rows, empty, firsts, sort_by

Mask = NDArray[np.bool_]
Positions = NDArray[np.intp]
Floats = NDArray[np.float64]
_ROUNDING = 1e-9
"""Of a quantile times a number of candidates: 0.55 × 20 is 11, not a little more."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its parameters; None where it takes none."""

    name: OfflineRule
    k: int | None = None
    """How many; for `soft`, draws per prompt, None: one, or, with `weights`, all."""
    max_per_prompt: int | None = None
    """Of `top-k-overall`. None: any number."""
    threshold: float | None = None
    quantile: float | None = None
    """0 to 1, instead of `threshold`: the reward at or below which this share of the prompt's candidates is."""
    margin: float = 0.0
    """Of `pairs`: the least difference in reward. Equal rewards are no pair, whatever the margin."""
    against: str = "worst"
    """Of `pairs`: whom the best is compared with, `worst` or `random`."""
    temperature: float = 1.0
    """Of `soft`, in units of reward."""
    weights: bool = False
    """Of `soft`: choose all and weigh them, instead of drawing."""

    @property
    def is_overall(self) -> bool:
        """Whether it compares candidates of different prompts."""
        return self.name.shape is OfflineRule.TOP_K_OVERALL

    @property
    def needs_random(self) -> bool:
        """Whether it looks at random numbers."""
        against_random = self.name.shape is OfflineRule.PAIRS and self.against == "random"
        draws = self.name.shape is OfflineRule.SOFT and not self.weights
        return self.name.is_random or against_random or draws

    @property
    def needs_text(self) -> bool:
        """Whether it compares texts."""
        return self.name.shape is OfflineRule.PAIRS


@dataclass(frozen=True, slots=True)
class Groups:
    """Where each prompt's candidates begin among (m,) candidates that are sorted by prompt."""

    starts: Positions
    of: Positions
    """(m,) the group of each."""

    @classmethod
    def at(cls, first: Mask) -> Groups:
        """first: (m,) whether a group begins here."""
        return cls(np.flatnonzero(first), np.cumsum(first) - 1)

    def sizes(self) -> Positions:
        """(g,)"""
        return np.diff(self.starts, append=len(self.of))

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """(g,)"""
        return np.add.reduceat(values, self.starts) if len(self.starts) else values[:0]

    def highest(self, values: Floats) -> Floats:
        """(g,)"""
        return np.maximum.reduceat(values, self.starts) if len(self.starts) else values[:0]

    def lowest(self, values: Floats) -> Floats:
        """(g,)"""
        return -self.highest(-values)


def grouped(candidates: Rows) -> tuple[Rows, Groups]:
    """Candidates sorted by prompt and place, and their groups."""
    candidates = sort_by(candidates, "hi", "lo", *PLACE)
    return candidates, Groups.at(firsts(candidates, "hi", "lo"))


def best(groups: Groups, priority: Floats, allowed: Mask | None = None) -> Positions:
    """(g,) the position of each group's highest priority, the first of several; -1 where none is allowed."""
    if allowed is not None:
        priority = np.where(allowed, priority, -np.inf)
    hits = np.flatnonzero((priority == groups.highest(priority)[groups.of]) & (priority > -np.inf))
    found = np.full(len(groups.starts), -1, dtype=np.intp)
    found[groups.of[hits[::-1]]] = hits[::-1]  # of several the first is assigned last
    return found


def ranks(groups: Groups, priority: Floats) -> Positions:
    """(m,) 0 for the highest priority of its group, counting up; ties in the order they are in."""
    order = np.lexsort([-priority, groups.of])
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order)) - groups.starts[groups.of]
    return rank


def at_or_above(rule: Rule, groups: Groups, values: Floats) -> Mask:
    """(m,) whether a reward reaches the threshold, or its prompt's quantile.

    The quantile q of n rewards is the ⌈qn⌉-th lowest (the first for q = 0), as in the inverse of their distribution.
    """
    if rule.quantile is None:
        mask: Mask = values >= (0.0 if rule.threshold is None else rule.threshold)
        return mask
    ascending = values[np.lexsort([values, groups.of])]
    nth = np.ceil(rule.quantile * groups.sizes() - _ROUNDING).astype(np.intp)
    cut = ascending[groups.starts + np.maximum(nth, 1) - 1]
    reached: Mask = values >= cut[groups.of]
    return reached


def pairs(rule: Rule, candidates: Rows, groups: Groups) -> tuple[Positions, Positions]:
    """(p,) positions of the chosen and of the rejected, prompt by prompt."""
    values, random = candidates["value"], candidates["random"]
    chosen, rejected = _pair(candidates, groups, values, random if rule.against == "random" else -values, rule.margin)
    if not rule.name.is_random:
        return chosen, rejected
    has_pair = np.isin(groups.of, groups.of[chosen])
    return _pair(candidates, groups, np.where(has_pair, random, -np.inf), random, None)


def _pair(
    candidates: Rows, groups: Groups, first: Floats, second: Floats, margin: float | None
) -> tuple[Positions, Positions]:
    """Of each group that of highest `first`; of those with another text, far enough below, that of highest `second`.

    margin: how far below in reward, and above 0 in any case; None: the reward does not matter.
    """
    one = best(groups, first)
    candidate_one = one[groups.of]
    other_text = (candidates["text_hi"] != candidates["text_hi"][candidate_one]) | (
        candidates["text_lo"] != candidates["text_lo"][candidate_one]
    )
    allowed = other_text & (candidate_one >= 0)
    if margin is not None:
        below = candidates["value"][candidate_one] - candidates["value"]
        allowed &= (below > 0) & (below >= margin)
    other = best(groups, second, allowed)
    both = (one >= 0) & (other >= 0)
    return one[both], other[both]


def soft_weights(rule: Rule, groups: Groups, values: Floats, random: Floats) -> Floats:
    """(m,) shares of their prompt in proportion to exp(reward / temperature); a control's are dealt out at random."""
    weights = np.exp((values - groups.highest(values)[groups.of]) / rule.temperature)
    weights /= groups.sums(weights)[groups.of]
    if rule.name.is_random:
        weights = weights[groups.starts[groups.of] + ranks(groups, random)]
    return weights


def perturbed(rule: Rule, values: Floats, random: Floats) -> Floats:
    """(m,) priorities whose k highest are k draws without replacement in proportion to exp(reward / temperature).

    The Gumbel-top-k trick (Kool, van Hoof and Welling 2019): reward / temperature plus Gumbel noise.
    """
    uniform = random + 2.0**-54  # above 0 and below 1
    noisy: Floats = values / rule.temperature - np.log(-np.log(uniform))
    return noisy


def choose(rule: Rule, candidates: Rows) -> Rows:
    """What a rule picks from the candidates of whole prompts, in no order. Rewards that are not finite are passed by.

    For `top-k-overall`, what it would pick were these all: `merge_overall` chooses again from the picks of several.
    """
    candidates, groups = grouped(candidates[np.isfinite(candidates["value"])])
    values, random = candidates["value"], candidates["random"]
    if rule.name.shape is OfflineRule.PAIRS:
        return _as_pairs(candidates, *pairs(rule, candidates, groups))
    if rule.weights:
        picks = _as_picks(candidates, slice(None), ranks(groups, values), values)
        picks["weight"] = soft_weights(rule, groups, values, random)
        return picks
    priority = _priority(rule, candidates)
    if rule.name.shape is OfflineRule.BEST_PER_PROMPT:
        positions = best(groups, priority)
        return _as_picks(candidates, positions, np.zeros(len(positions), dtype=np.intp), priority)
    rank = ranks(groups, priority)
    picks = _as_picks(candidates, rank < _how_many(rule, groups, values), rank, priority)
    return merge_overall(rule, picks) if rule.is_overall else picks


def keep(rule: Rule, candidates: Rows, groups: Groups) -> Rows:
    """Those that a rule could still pick when there are others: `choose(keep(a) + b) == choose(a + b)`.

    groups: of parts of prompts, as requests are. Rules that need whole prompts keep all.
    """
    if rule.max_per_prompt is not None:
        # Capped prompt by prompt, as the rule does: a request's best that its prompt's cap takes away later must not
        # count among the k before which all others are left out here.
        candidates, groups = grouped(candidates)
    priority = _priority(rule, candidates)
    if rule.name.shape is OfflineRule.BEST_PER_PROMPT:
        return candidates[best(groups, priority)]
    drawn = rule.name.shape is OfflineRule.SOFT and not rule.weights
    if drawn or rule.name.shape is OfflineRule.TOP_K_PER_PROMPT or rule.max_per_prompt is not None:
        few = ranks(groups, priority) < _how_many(rule, groups, candidates["value"])
        candidates, priority = candidates[few], priority[few]
    if rule.is_overall and rule.k is not None and rule.k < len(candidates):
        kth_highest = -np.partition(-priority, rule.k - 1)[rule.k - 1]
        candidates = candidates[priority >= kth_highest]
    return candidates


def _priority(rule: Rule, candidates: Rows) -> Floats:
    """(m,) what decides, the highest first."""
    if rule.name is OfflineRule.SOFT and not rule.weights:
        return perturbed(rule, candidates["value"], candidates["random"])
    priority: Floats = candidates["random" if rule.name.is_random else "value"]
    return priority


def _how_many(rule: Rule, groups: Groups, values: Floats) -> Any:
    """How many of each prompt at most: a number, or (m,) of each one's prompt."""
    if rule.name.shape is OfflineRule.THRESHOLD:
        return groups.sums(at_or_above(rule, groups, values).astype(np.intp))[groups.of]
    if rule.is_overall:
        return rule.max_per_prompt or len(values)
    return rule.k or 1


def merge_overall(rule: Rule, picks: Rows) -> Rows:
    """The k picks of highest priority, best first, ties to the first in the log; `rank` counts from 1."""
    k = rule.k or 0
    if 0 < k < len(picks):
        kth_highest = -np.partition(-picks["priority"], k - 1)[k - 1]
        picks = picks[picks["priority"] >= kth_highest]
    order = np.lexsort([*(picks[name] for name in reversed(PLACE)), -picks["priority"]])
    picks = picks[order[:k]]
    picks["rank"] = np.arange(1, len(picks) + 1)
    return picks


def _as_picks(candidates: Rows, which: Any, rank: Positions, priority: Floats) -> Rows:
    """which: a mask, positions or slice of the candidates; rank: (m,) from 0, or one for each of `which`."""
    chosen = candidates[which]
    picks = np.zeros(len(chosen), dtype=PICK)
    for name in (*PLACE, "hi", "lo", "form", "value"):
        picks[name] = chosen[name]
    for name in PLACE:
        picks[f"line_{name}"] = chosen[name]
    picks["rank"] = (rank if len(rank) == len(chosen) else rank[which]) + 1
    picks["weight"] = 1.0
    picks["priority"] = priority[which]
    return picks


def _as_pairs(candidates: Rows, chosen: Positions, rejected: Positions) -> Rows:
    sides = []
    for role, positions in enumerate((chosen, rejected)):
        side = _as_picks(candidates, positions, np.full(len(positions), role), candidates["value"])
        side["role"] = role
        for name in PLACE:
            side[f"line_{name}"] = candidates[name][chosen]
        sides.append(side)
    return np.concatenate(sides) if len(chosen) else empty(PICK)


def one_line_per_prompt(picks: Rows) -> Rows:
    """The picks with those of one prompt on one line, in log order."""
    picks = sort_by(picks, "hi", "lo", *PLACE)
    groups = Groups.at(firsts(picks, "hi", "lo"))
    for name in PLACE:
        picks[f"line_{name}"] = picks[name][groups.starts][groups.of]
    return picks
