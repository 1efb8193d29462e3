"""The offline rules against brute force, and what they may not depend on."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bon_server.core.selection import OfflineRule, argmax
from bon_server.offline.select.rows import PLACE, Rows, firsts, sort_by
from bon_server.offline.select.rules import Groups, Rule, choose, grouped, keep, merge_overall, one_line_per_prompt
from tests.offline.grouped_files import WORKED_EXAMPLE
from tests.offline.select.candidates import One, Place, as_rows, candidates, expected, rewards, some_rules

BEST, TOP_K = OfflineRule.BEST_PER_PROMPT, OfflineRule.TOP_K_OVERALL


def places(picks: Rows) -> list[Place]:
    """In log order; of pairs, the chosen and the rejected one together."""
    picks = sort_by(picks, "line_writer", "line_ordinal", "line_index", "role", *PLACE)
    return list(zip(*(picks[name].tolist() for name in PLACE), strict=True))


def sorted_bytes(picks: Rows) -> bytes:
    return sort_by(picks, "role", *PLACE).tobytes()


@given(candidates(), some_rules)
def test_every_rule_agrees_with_brute_force(some: list[One], rule: Rule) -> None:
    wanted = [one.place for one in expected(rule, some)]
    picked = places(choose(rule, as_rows(some)))
    if rule.name.shape is OfflineRule.PAIRS:
        assert set(zip(picked[::2], picked[1::2], strict=True)) == set(zip(wanted[::2], wanted[1::2], strict=True))
    else:
        assert picked == sorted(wanted)


@given(candidates(), some_rules, st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_nothing(some: list[One], rule: Rule, shuffler: random.Random) -> None:
    before = choose(rule, as_rows(some))
    shuffler.shuffle(some)
    assert sorted_bytes(choose(rule, as_rows(some))) == sorted_bytes(before)


@example(
    # Two requests of a prompt before the only one of another.
    [One(prompt, 1.0 - 0.25 * ordinal, (0, ordinal, 0), "a", 0.0) for ordinal, prompt in enumerate((0, 0, 1))],
    Rule(TOP_K, k=2, max_per_prompt=1),
)
@given(candidates(), some_rules)
def test_what_is_not_kept_of_a_request_would_not_have_been_picked(some: list[One], rule: Rule) -> None:
    rows = sort_by(as_rows([one for one in some if math.isfinite(one.reward)]), *PLACE)
    kept = keep(rule, rows, Groups.at(firsts(rows, "writer", "ordinal")))
    assert sorted_bytes(choose(rule, kept)) == sorted_bytes(choose(rule, rows))


@given(candidates(), st.integers(1, 9), st.sampled_from([None, 1, 2]))
def test_top_k_of_parts_is_that_of_the_whole(some: list[One], k: int, cap: int | None) -> None:
    """Whole prompts in each part, as the second stage has them."""
    rule = Rule(TOP_K, k=k, max_per_prompt=cap)
    parts = [choose(rule, as_rows([one for one in some if one.prompt == prompt])) for prompt in range(3)]
    merged = merge_overall(rule, np.concatenate(parts))
    assert merged.tobytes() == choose(rule, as_rows(some)).tobytes()
    assert merged["rank"].tolist() == list(range(1, len(merged) + 1))


@given(candidates(), some_rules)
def test_a_control_has_the_size_and_shape_of_its_rule(some: list[One], rule: Rule) -> None:
    shape = rule.name.shape
    ours, theirs = (choose(replace(rule, name=name), as_rows(some)) for name in (shape, OfflineRule(f"random-{shape}")))
    assert len(ours) == len(theirs)
    if not rule.is_overall:
        assert Counter(ours["lo"].tolist()) == Counter(theirs["lo"].tolist())
    for prompt in range(3):
        mine, other = (np.sort(picks["weight"][picks["lo"] == prompt]) for picks in (ours, theirs))
        assert rule.is_overall or np.array_equal(mine, other)


@given(candidates(), st.sampled_from(["worst", "random"]), st.sampled_from([0.0, 0.5]))
def test_pairs_never_hold_one_text_twice(some: list[One], against: str, margin: float) -> None:
    texts = {one.place: one.text for one in some}
    for name in (OfflineRule.PAIRS, OfflineRule.RANDOM_PAIRS):
        picked = places(choose(Rule(name, against=against, margin=margin), as_rows(some)))
        assert len(picked) % 2 == 0
        assert all(texts[one] != texts[other] for one, other in zip(picked[::2], picked[1::2], strict=True))


@given(candidates(), st.sampled_from([0.1, 1.0, 10.0]))
def test_weights_are_the_softmax_of_their_prompt(some: list[One], temperature: float) -> None:
    picks = choose(Rule(OfflineRule.SOFT, temperature=temperature, weights=True), as_rows(some))
    finite = [one for one in some if math.isfinite(one.reward)]
    totals: defaultdict[int, float] = defaultdict(float)
    for one in finite:
        totals[one.prompt] += math.exp(one.reward / temperature)
    wanted = {one.place: math.exp(one.reward / temperature) / totals[one.prompt] for one in finite}
    found = dict(
        zip(zip(*(picks[name].tolist() for name in PLACE), strict=True), picks["weight"].tolist(), strict=True)
    )
    assert found == pytest.approx(wanted)


def test_soft_draws_by_the_exponential_of_the_reward() -> None:
    """Chi-squared with 3 degrees of freedom over a fixed seed; false alarms: 1 in 10,000 seeds."""
    values, temperature, draws = [0.0, 1.0, -0.5, 1.5], 0.7, 20_000
    uniform = np.random.default_rng(5).random((draws, len(values)))
    some = [
        One(prompt, value, (0, prompt, index), "", uniform[prompt, index])
        for prompt in range(draws)
        for index, value in enumerate(values)
    ]
    rows = as_rows(some)
    seen = Counter(choose(Rule(OfflineRule.SOFT, temperature=temperature), rows)["index"].tolist())
    weights = [math.exp(value / temperature) for value in values]
    wanted = [draws * weight / sum(weights) for weight in weights]
    assert sum((seen[index] - count) ** 2 / count for index, count in enumerate(wanted)) < 21.1


def test_a_quantile_is_not_moved_by_rounding() -> None:
    """0.55 × 20 is 11.000000000000002 in doubles: the 11th lowest, not the 12th."""
    some = [One(0, float(i), (0, 0, i), "", 0.0) for i in range(20)]
    assert len(choose(Rule(OfflineRule.THRESHOLD, quantile=0.55), as_rows(some))) == 10


@given(st.lists(rewards, min_size=1, max_size=8))
def test_for_one_prompt_top_one_best_and_argmax_agree(values: list[float]) -> None:
    rows = as_rows([One(0, reward, (0, 0, i), "", 0.0) for i, reward in enumerate(values)])
    winner = argmax(values)
    wanted = [] if winner is None else [(0, 0, winner)]
    for rule in (Rule(BEST), Rule(TOP_K, k=1), Rule(OfflineRule.TOP_K_PER_PROMPT, k=1)):
        assert places(choose(rule, rows)) == wanted


def test_the_worked_example() -> None:
    some = [One(i, r, (0, i, j), "", 0.0) for i, row in enumerate(WORKED_EXAMPLE) for j, r in enumerate(row)]

    def top(k: int) -> list[int]:
        picks = choose(Rule(TOP_K, k=k), as_rows(some))
        return [4 * ordinal + index for ordinal, index in zip(picks["ordinal"], picks["index"], strict=True)]

    assert [index for _, _, index in places(choose(Rule(BEST), as_rows(some)))] == [0, 1, 0, 2, 3]
    assert top(5) == [8, 5, 14, 0, 11]
    assert top(4) == [8, 5, 14, 0]
    assert top(6) == [8, 5, 14, 0, 11, 6]
    assert len(top(100)) == 20


@given(candidates(), st.integers(1, 3))
def test_lines_of_whole_prompts_begin_at_their_first_candidate(some: list[One], k: int) -> None:
    picks = one_line_per_prompt(choose(Rule(OfflineRule.TOP_K_PER_PROMPT, k=k), as_rows(some)))
    for prompt in range(3):
        own = picks[picks["lo"] == prompt]
        lines = set(zip(*(own[f"line_{name}"].tolist() for name in PLACE), strict=True))
        assert lines == ({min(zip(*(own[name].tolist() for name in PLACE), strict=True))} if len(own) else set())


def test_no_candidates_are_no_picks() -> None:
    rows, groups = grouped(as_rows([]))
    for shape in OfflineRule:
        rule = Rule(shape, k=2, threshold=0.0)
        assert len(choose(rule, rows)) == len(keep(rule, rows, groups)) == 0
