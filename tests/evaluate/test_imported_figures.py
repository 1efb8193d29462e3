"""Published best-of-N data, imported: every figure against another calculation, in plain Python and from the file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bon_server.evaluate.curve import curve
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.headroom import headroom
from bon_server.evaluate.reading import LogSource
from tests.offline.grouped_files import import_lines

MOST = 6
REWARDS = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0]),  # heavy ties
    st.sampled_from([None, math.nan, math.inf, -math.inf]),
    st.floats(-5, 5),
)
SCORES = st.one_of(st.sampled_from([0.0, 1.0]), st.sampled_from([None, math.nan]))


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    """A prompt of a few, with up to six answers: equal texts, ties, nulls, values that are no numbers, cut answers."""
    n = draw(st.integers(1, MOST))

    def of_each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    one = {
        "prompt": draw(st.sampled_from(["2 + 3?", "7 - 9?", "4 * 4?", "Say 1."])),
        "responses": of_each(st.sampled_from(["5", "It is 5.", "−2", "16", ""])),
        "rewards": of_each(REWARDS),
        "scores": {"gold": of_each(SCORES)},
    }
    if draw(st.booleans()):
        one["finish_reasons"] = of_each(st.sampled_from(["stop", "length", None]))
    return one


class Answer(NamedTuple):
    """What the file says of one answer."""

    text: str
    reward: float | None
    """None: none that counts."""
    gold: float | None
    cut: bool | None
    """None: it does not say."""


def answers(file: Path) -> Iterator[tuple[str, list[Answer]]]:
    """Prompts with their answers, line by line."""
    for text in file.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        columns = [
            line["responses"],
            map(_finite, line["rewards"]),
            map(_finite, line["scores"]["gold"]),
            [None if reason is None else reason == "length" for reason in _reasons(line)],
        ]
        yield line["prompt"], [Answer(*each) for each in zip(*columns, strict=True)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _reasons(line: dict[str, Any]) -> list[str | None]:
    reasons: list[str | None] = line.get("finish_reasons", [None] * len(line["responses"]))
    return reasons


def mean_of_best(of: Sequence[tuple[float, float]], k: int) -> float:
    """Of (rank, value): mean value of the best by rank in every subset of k, those tied for best each alike."""
    best = []
    for subset in combinations(of, k):
        highest = max(rank for rank, _ in subset)
        best.append(fmean(value for rank, value in subset if rank == highest))
    return fmean(best)


def kl_of_best(ranks: Sequence[float], k: int) -> float:
    """KL of the best of k draws with replacement from these ranks, by its definition."""
    total = 0.0
    for level in set(ranks):
        p = ranks.count(level) / len(ranks)
        at_most = sum(rank <= level for rank in ranks) / len(ranks)
        q = at_most**k - (at_most - p) ** k
        total += q * math.log(q / p) if q > 0 else 0.0
    return total


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def expected_rows(prompts: Sequence[Sequence[Answer]]) -> list[dict[str, Any]]:
    """The curve of prompts with their ranked answers."""
    ranked = [[(one.reward, one.reward) for one in prompt if one.reward is not None] for prompt in prompts]
    valued = [[(one.reward, one.gold) for one in prompt if None not in (one.reward, one.gold)] for prompt in prompts]
    tied = any(len(set(prompt)) < len(prompt) for prompt in ranked)
    rows = []
    for k in range(1, max(map(len, ranked)) + 1):
        enough = [prompt for prompt in ranked if len(prompt) >= k]
        plugin = fmean(kl_of_best([rank for rank, _ in prompt], k) for prompt in enough)
        bound = math.log(k) - (k - 1) / k
        rows.append(
            {
                "k": k,
                "prompts": len(enough),
                "reward": fmean(mean_of_best(prompt, k) for prompt in enough),
                "value": mean([mean_of_best(prompt, k) for prompt in valued if len(prompt) >= k]),  # type: ignore[arg-type]
                "value_prompts": sum(len(prompt) >= k for prompt in valued),
                "kl_nats": plugin if tied else bound,
                "kl_bound_nats": bound,
                "tokens": None,
            }
        )
    return rows


TIES = {
    "prompt": "ties",
    "responses": ["a", "a", "b"],
    "rewards": [1.0, 1.0, 1.0],
    "scores": {"gold": [1.0, 0.0, None]},
}


@settings(max_examples=60, deadline=None)
@example([TIES, TIES], False, False)
@example([TIES, TIES | {"rewards": [math.nan, None, 0.5]}], False, True)
@example([TIES | {"finish_reasons": ["length", "stop", None]}], True, False)
@given(st.lists(lines(), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_figures_of_imported_data(made: list[dict[str, Any]], drop_truncated: bool, merge: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_lines(folder, made)
        read = list(answers(folder / "import.jsonl"))
        kept = [(prompt, [one for one in of if not (drop_truncated and one.cut)]) for prompt, of in read]
        if merge:
            kept = [(prompt, [one for other, of in kept if other == prompt for one in of]) for prompt in dict(kept)]
        prompts = [of for _, of in kept if any(one.reward is not None for one in of)]
        golds = [one.gold is not None for _, of in read for one in of]
        if not prompts or not any(golds):
            return  # refused, as other tests hold
        source = LogSource((folder / "log",), merge=merge)
        document = curve(CurveOptions(source, value="gold", drop_truncated=drop_truncated))
        rows = expected_rows(prompts)
        assert len(document["curve"]) == len(rows)
        for row, other in zip(document["curve"], rows, strict=True):
            assert {name: row[name] for name in other} == pytest.approx(other, abs=1e-12)
        ranks = [[one.reward for one in of if one.reward is not None] for of in prompts]
        counts = document["counts"]
        assert document["prompts"] == len(prompts)
        assert counts["requests"] == len(read)
        assert counts["candidates"] == sum(len(of) for _, of in read)
        assert counts["ranked"] == sum(map(len, ranks))
        assert counts["prompts_with_ties"] == sum(len(set(of)) < len(of) for of in ranks)
        assert counts["prompts_tied_for_best"] == sum(of.count(max(of)) > 1 for of in ranks)
        if not merge and not drop_truncated:
            check_headroom(source, prompts)


def check_headroom(source: LogSource, prompts: Sequence[Sequence[Answer]]) -> None:
    """Duplicate, truncated and tied answers are counted, among those that have a reward."""
    document = headroom(CurveOptions(source))
    ranked = [[one for one in of if one.reward is not None] for of in prompts]
    repeats = [
        one.text in [other.text for other in of[:i]]
        for of in prompts
        for i, one in enumerate(of)
        if one.reward is not None
    ]
    cuts = [one.cut for of in ranked for one in of if one.cut is not None]
    winners = [next(one for one in of if one.reward == max(other.reward for other in of)) for of in ranked]  # type: ignore[type-var]
    expected = {
        "duplicates": mean(repeats),
        "truncated": mean(cuts),
        "winners_truncated": mean([one.cut for one in winners if one.cut is not None]),
        "tied_pairs": mean([one.reward == other.reward for of in ranked for one, other in combinations(of, 2)]),
    }
    assert {name: document[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-12)
