"""`bon select` from several logs, reward models and policies."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import LogError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Message, ModelRef, Outcome, PolicyRef
from bon_server.log.record import Record
from tests.log.records import record, scored
from tests.offline.grouped_files import import_lines, line
from tests.offline.select.test_select import BEST, chosen, run, serve


def test_rewards_of_different_models_are_not_compared(tmp_path: Path) -> None:
    def scored_by(model: str, revision: str, request_id: str, *rewards: float) -> Record:
        return record(request_id, rewards, reward_models=(ModelRef("reward", model, revision),))

    serve(tmp_path, scored_by("rm", "1", "a", 0.1), scored_by("rm", "2", "b", 0.9), scored_by("rm", "2", "c", 0.4))
    for rule in (BEST, OfflineRule.RANDOM_BEST_PER_PROMPT):
        with pytest.raises(LogError, match=r"rm@1 and rm@2.*--reward-model"):
            run(tmp_path, rule)
    assert not (tmp_path / "out").exists()
    manifest = run(tmp_path, reward_model="rm@2")
    assert manifest["counts"]["dropped"] == {"other_reward_model": 1}
    assert [model["revision"] for model in manifest["reward_models"]] == ["2"]
    with pytest.raises(LogError, match="rm@1 and rm@2"):
        run(tmp_path, reward_model="rm", out="other")


def test_rewards_of_different_models_are_compared_when_normalised(tmp_path: Path) -> None:
    """Model 2 gives ten times as much; that its second is the best of all shows only beside its own others."""
    first, second = (ModelRef("reward", "rm", revision) for revision in "12")
    chat = {name: (Message("user", name),) for name in "ab"}
    serve(
        tmp_path,
        record("a1", (1.0, 2.0, 3.0), prompt_messages=chat["a"], reward_models=(first,)),
        record("b1", (0.0, 4.0), prompt_messages=chat["b"], reward_models=(first,)),
        record("a2", (10.0, 12.0, 11.0, 11.0), prompt_messages=chat["a"], reward_models=(second,)),
    )
    manifest = run(tmp_path, normalise=True)
    assert [(model["revision"], model["mean"]) for model in manifest["reward_models"]] == [("1", 2.0), ("2", 11.0)]
    deviations = [model["deviation"] for model in manifest["reward_models"]]
    assert deviations == pytest.approx([math.sqrt(2), math.sqrt(0.5)])
    meta = pq.read_table(tmp_path / "out" / "meta.parquet").to_pylist()
    assert [(row["request_id"], row["candidate_index"], row["reward"]) for row in meta] == [
        ("b1", 1, 4.0),
        ("a2", 1, 12),
    ]
    assert [row["value"] for row in meta] == pytest.approx([2 / math.sqrt(2), 1 / math.sqrt(0.5)])


def test_the_share_of_each_policy_is_told(tmp_path: Path) -> None:
    """Of one prompt, asked of three policies; the second model in a log of its own."""
    serve(
        tmp_path, record("a", (0.1, 0.5), policy=PolicyRef("p", "2"), candidates=(scored(0, 0.1, policy_revision=""),))
    )
    serve(tmp_path, record("b", (0.9, 0.7), policy=PolicyRef("q", "1")), record("c", (0.8,)), log="log2")
    logs = ("log", "log2")
    manifest = run(tmp_path, OfflineRule.TOP_K_PER_PROMPT, logs, k=2)
    assert manifest["policies"] == [
        {"id": "a-policy", "revision": "abcd", "candidates": 1, "selected": 1, "share": 0.5},
        {"id": "p", "revision": "2", "candidates": 1, "selected": 0, "share": 0.0},
        {"id": "q", "revision": "abcd", "candidates": 2, "selected": 1, "share": 0.5},
    ]
    assert run(tmp_path, BEST, logs, policies=("p@2",), out="p")["counts"]["dropped"] == {"policy": 3}
    assert run(tmp_path, BEST, logs, policies=("p", "q@1"), out="q")["counts"]["dropped"] == {"policy": 3}


def test_logs_are_read_in_the_order_given_and_ties_go_to_the_first(tmp_path: Path) -> None:
    one, two = line("a", [0.5, 0.9]), line("a", [0.9, 0.9]) | {"responses": ["other.0", "other.1"]}
    import_lines(tmp_path, [one], log="one", reward_model="rm")
    import_lines(tmp_path, [two], log="two", reward_model="rm")
    assert chosen(tmp_path, logs=("one", "two")) == ["a.1"]
    assert chosen(tmp_path, logs=("two", "one")) == ["other.0"]


@pytest.mark.parametrize("logs", [("one", "two"), ("two", "one")])
def test_a_request_answered_by_two_replicas_counts_once_the_earliest(tmp_path: Path, logs: tuple[str, str]) -> None:
    late = record("r", (0.9,), principal="ann")
    early = replace(record("r", (0.1,), principal="ann"), created_at=late.created_at - timedelta(seconds=1))
    failed = record("r", (0.2,), principal="ann", attempt=2, outcome=Outcome.FAILED)
    serve(tmp_path, late, record("r", (0.05,), principal="bob"), log="one")
    serve(tmp_path, early, failed, log="two")
    manifest = run(tmp_path, logs=logs)
    assert manifest["counts"]["dropped"] == {"repeated_request": 1}
    (row,) = pq.read_table(tmp_path / "out" / "meta.parquet").to_pylist()
    assert (row["reward"], row["writer"]) == (0.2, logs.index("two"))
