"""KL of the answers that were given: each way of choosing gets the figures that are valid for it, and no others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import LogError
from bon_server.core.types import (
    Budget,
    Candidate,
    CandidateStatus,
    Kind,
    LogprobKind,
    Outcome,
    SelectionReason,
    SelectionRule,
)
from bon_server.estimators import kl_bound, kl_soft_bound, kl_winner_probability
from bon_server.evaluate.kl import kl
from bon_server.evaluate.reading import LogSource
from tests.evaluate.independent import exact_kl
from tests.evaluate.logs import imported, written
from tests.log.records import record, scored
from tests.offline.grouped_files import line

FIGURES = ("bound", "exact_plugin", "winner_probability", "soft_bound")
ARGMAX: dict[str, Any] = {"rule": SelectionRule.ARGMAX, "selection_reason": SelectionReason.ARGMAX}


def rows(log: Path) -> dict[str, dict[str, Any]]:
    return {row["how"]: row for row in kl(LogSource((log,)))["answers"]}


def valid(row: dict[str, Any]) -> set[str]:
    return {name for name in FIGURES if row[f"kl_{name}_nats"] is not None}


def test_the_best_of_n(tmp_path: Path) -> None:
    candidates = tuple(
        scored(i, reward, logprob=-1.0 - i, logprob_kind=LogprobKind.SAMPLED) for i, reward in enumerate([0, 1, 1, 0])
    )
    log = written(tmp_path, [record("r", candidates=candidates, selected_index=1, **ARGMAX), record("s", [0, 1, 1, 0])])
    row = rows(log)["best-of-n"]
    assert (row["n"], row["requests"], row["with_logprob"]) == (4, 2, 1)
    assert valid(row) == {"bound", "exact_plugin", "winner_probability"}
    assert row["kl_bound_nats"] == kl_bound(4)
    assert row["kl_exact_plugin_nats"] == pytest.approx(exact_kl([0, 1, 1, 0], 4))
    assert row["kl_winner_probability_nats"] == pytest.approx(kl_winner_probability(4, -2.0))


def test_a_soft_choice(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"rule": SelectionRule.SOFT, "selection_temperature": 0.5, "selected_index": 0}
    row = rows(written(tmp_path, [record("r", [0.0, 1.0], **fields)]))["soft"]
    assert valid(row) == {"soft_bound"}
    assert row["kl_soft_bound_nats"] == pytest.approx(kl_soft_bound([0.0, 1.0], 0.5)[0])


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        ({"budget": Budget(stop_at_reward=0.1), "selection_reason": SelectionReason.THRESHOLD}, "stopped"),
        ({"budget": Budget(prune_fraction=0.5)}, "stopped"),
        ({"selection_reason": SelectionReason.DEADLINE, "outcome": Outcome.PARTIAL}, "stopped"),
        ({"outcome": Outcome.PARTIAL}, "partial"),
    ],
)
def test_what_was_cut_short_has_only_the_bound_that_always_holds(
    tmp_path: Path, fields: dict[str, Any], how: str
) -> None:
    candidates = (scored(0, 1.0), scored(1, 2.0), Candidate(2, CandidateStatus.TOO_LONG))
    one = record("r", candidates=candidates, n=4, **(ARGMAX | fields))
    found = rows(written(tmp_path, [one]))
    assert list(found) == [how]
    assert valid(found[how]) == set()
    assert found[how]["kl_any_selection_bound_nats"] == pytest.approx(math.log(4))


def test_imports_are_taken_as_if_their_best_had_been_chosen(tmp_path: Path) -> None:
    log = imported(tmp_path, [line("a", [1.0] * 85 + [0.0] * 15), line("b", [1.0, None])])
    found = rows(log)
    assert found["best-of-n"]["n"] == 100
    assert valid(found["best-of-n"]) == {"bound", "exact_plugin"}
    assert (found["partial"]["n"], found["partial"]["requests"]) == (2, 1)


def test_completions_that_were_only_scored_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="1 requests read; none has candidates of a policy"):
        kl(LogSource((written(tmp_path, [record("r", kind=Kind.SCORE)]),)))
