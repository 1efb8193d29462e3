"""`bon select --reward NAME`: by an added score, or by a part of the logged rewards."""

from __future__ import annotations

import json
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec import structs

from bon_server.core.errors import LogError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import CandidateStatus, Message, ModelRef
from bon_server.log.read.reader import LogReader
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.scores.files import score_files
from bon_server.log.spool.spool import Spool
from bon_server.offline.rescore import rescore as rescoring
from bon_server.offline.select import plan
from bon_server.offline.select.fetching import fetch
from bon_server.offline.select.manifest import Manifest
from bon_server.offline.select.options import Filters, Written
from bon_server.offline.select.select import SelectOptions, select
from bon_server.system.files import sha256_of
from tests.log.records import record, scored
from tests.log.seal.test_sealing import seal
from tests.offline.grouped_files import import_lines, line
from tests.offline.rescore.rescoring import commit, rescored, sampled
from tests.offline.select.test_same_bytes import records, training_set, write_log

BEST = OfflineRule.BEST_PER_PROMPT


def run(log: Path, out: Path, reward: str | None = "new", rule: OfflineRule = BEST, **options: Any) -> Manifest:
    filters = Filters(**{"reward": reward, **options.pop("filters", {})})
    logs = options.pop("logs", (log,))
    return select(SelectOptions(logs, rule, out, filters=filters, **options))


def lines(out: Path) -> list[Any]:
    return [json.loads(text) for path in sorted(out.glob("part-*")) for text in path.read_text().splitlines()]


def test_the_best_by_an_added_score_is_chosen(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(40))
    rescored(log)
    run(log, tmp_path / "out")
    chosen = {row["prompt"][0]["content"]: row["completion"][0]["content"] for row in lines(tmp_path / "out")}
    best: dict[str, tuple[float, str]] = {}
    with LogReader(log) as reader:
        for one in reader.records():
            assert one.prompt_messages is not None
            for candidate in one.candidates:
                found = candidate.rewards["new"], candidate.text
                prompt = one.prompt_messages[0].content
                best[prompt] = max(best.get(prompt, found), found)
    assert chosen == {prompt: text for prompt, (_, text) in best.items()}
    meta = pq.read_table(tmp_path / "out" / "meta.parquet").to_pylist()
    assert sorted(row["reward"] for row in meta) == sorted(reward for reward, _ in best.values())
    assert all(row["reward"] == row["value"] for row in meta)


def test_mixed_revisions_can_be_compared_once_they_are_rescored(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for revision in ("1", "2"):
        commit(log, [replace(one, request_id=one.request_id + revision, reward_models=(ModelRef("r", "rm", revision),))
                     for one in sampled(10)])  # fmt: skip
    with pytest.raises(LogError, match="different reward models"):
        run(log, tmp_path / "out", reward=None)
    rescored(log)
    manifest = run(log, tmp_path / "out")
    assert manifest["counts"]["selected"] > 5 and manifest["filters"]["reward"] == "new"
    assert [one["id"] for one in manifest["reward_models"]] == ["synthetic"]
    other = commit(tmp_path / "other", sampled(10, first=50))
    rescored(other, "synthetic:nan_rate=0.1")
    with pytest.raises(LogError, match="different reward models"):
        run(log, tmp_path / "both", logs=(log, other))


def test_the_manifest_names_the_files_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "CHUNK_REQUESTS", 16)
    log = tmp_path / "log"
    with closing(Spool.open(log)) as spool:
        spool.append(sampled(40))
        seal(spool)
    make_snapshot(log, "forty")
    commit(log, sampled(20, first=40))
    rescored(log)
    manifest = run(log, tmp_path / "out")
    named = {Path(one["file"]): one for one in manifest["inputs"] if "/scores/" in one["file"]}
    files = score_files(log, "new")
    assert set(named) == {file.path for file in files} and len(files) == 4
    assert all(named[file.path]["sha256"] == sha256_of(file.path) for file in files)
    assert sum(one["rows"] for one in named.values()) == 60
    assert run(log, tmp_path / "out") == manifest  # is there already, and is the same
    pinned = run(log, tmp_path / "pinned", snapshot="forty")
    assert sum("/scores/" in one["file"] for one in pinned["inputs"]) == 3
    commit(log, sampled(5, first=60))
    rescored(log)
    assert run(log, tmp_path / "pinned", snapshot="forty") == pinned
    with pytest.raises(LogError, match="another selection"):
        run(log, tmp_path / "out")


RULES: list[dict[str, Any]] = [
    {"rule": BEST},
    {"rule": OfflineRule.TOP_K_OVERALL, "k": 17},
    {"rule": OfflineRule.PAIRS, "against": "random"},
    {"rule": OfflineRule.THRESHOLD, "quantile": 0.7, "filters": {"normalise": True}},
    {"rule": OfflineRule.TOP_K_PER_PROMPT, "k": 3, "format": "grouped", "filters": {"min_n": 2}},
    {"rule": BEST, "format": "parquet"},
]


@pytest.mark.parametrize("options", RULES, ids=lambda options: f"{options['rule']}-{options.get('format', '')}")
def test_files_tasks_and_threads_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def chosen(out: str, **more: Any) -> tuple[dict[str, bytes], Any]:
        manifest = run(tmp_path / "log", tmp_path / out, **(options | more))
        return training_set(tmp_path / out), {name: told for name, told in manifest.items() if name != "inputs"}

    log = tmp_path / "log"
    write_log(log, records(), [60], None)
    rescored(log)
    whole = chosen("whole")
    assert whole[1]["counts"]["selected"] > 10
    log.rename(tmp_path / "before")
    write_log(log, records(), [1, 7, 30, 2, 20], random.Random(1))
    monkeypatch.setattr(rescoring, "CHUNK_REQUESTS", 7)
    rescored(log)
    monkeypatch.setattr(plan, "TASK_RECORDS", 8)
    monkeypatch.setattr(plan, "BUCKET_RECORDS", 4)
    monkeypatch.setattr(plan, "RANGE_ORDINALS", 4)
    assert chosen("tasks", threads=5) == whole


def test_what_came_after_the_rescoring_is_counted(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(10))
    rescored(log, "synthetic:nan_rate=0.3")
    later = sampled(5, first=10)
    commit(log, later)
    counts = run(log, tmp_path / "out")["counts"]
    assert counts["dropped"]["not_rescored"] == sum(len(one.candidates) for one in later) > 0
    assert counts["dropped"]["non_finite"] > 0


def test_what_the_first_model_could_not_score_can_be_chosen(tmp_path: Path) -> None:
    failed = structs.replace(scored(0, 0.0, text="failed before"), status=CandidateStatus.FAILED, reward=None)
    log = commit(tmp_path / "log", [record("r", candidates=(failed,))])
    rescored(log)
    assert run(log, tmp_path / "old", reward=None)["counts"]["selected"] == 0
    assert run(log, tmp_path / "new")["counts"]["selected"] == 1


def test_a_part_of_the_logged_rewards(tmp_path: Path) -> None:
    parts = (ModelRef("a", "model-a", "1"), ModelRef("b", "model-b", "2"), ModelRef("ensemble", "mean", "3"))
    candidates = (
        scored(0, 0.9, text="by all", rewards={"a": 0.1, "b": 1.7}),
        scored(1, 0.5, text="by a", rewards={"a": 0.8, "b": 0.2}),
        scored(2, 0.7, text="without", rewards={"b": 0.7}),
    )
    log = commit(tmp_path / "log", [record("r", candidates=candidates, reward_models=parts)])
    manifest = run(log, tmp_path / "out", reward="a")
    assert lines(tmp_path / "out")[0]["completion"][0]["content"] == "by a"
    assert manifest["reward_models"] == [{"name": "a", "id": "model-a", "revision": "1"}]
    assert manifest["counts"]["dropped"] == {"unscored": 1}
    with pytest.raises(LogError, match="'c' given"):
        run(log, tmp_path / "none", reward="c")


def test_imported_scores(tmp_path: Path) -> None:
    import_lines(tmp_path, [line("p", [0.9, 0.1], scores={"gold": [0.2, 0.6]})])
    manifest = run(tmp_path / "log", tmp_path / "out", reward="gold")
    assert lines(tmp_path / "out")[0]["completion"][0]["content"] == "p.1"
    assert manifest["reward_models"][0]["id"].startswith("file-sha256:")


def test_grouped_is_imported_as_it_was(tmp_path: Path) -> None:
    """Rewards, their parts, finish reasons and the identity of the prompt."""
    candidates = (
        scored(0, 0.9, rewards={"a": 0.1, "b": 1.7}),
        scored(1, 0.5, rewards={"a": 0.8}),
    )
    context = {"answer": "7"}
    log = commit(tmp_path / "log", [record("r", candidates=candidates, reward_context=context), record("plain",
                 prompt_messages=(Message("user", "other"),))])  # fmt: skip
    rule: dict[str, Any] = {"rule": OfflineRule.TOP_K_PER_PROMPT, "k": 9, "format": "grouped"}
    run(log, tmp_path / "out", reward=None, **rule)
    first, second = lines(tmp_path / "out")
    assert first["scores"] == {"a": [0.1, 0.8], "b": [1.7, None]} and first["reward_context"] == context
    assert "scores" not in second and "reward_context" not in second
    (tmp_path / "again").mkdir()
    import_lines(tmp_path / "again", [json.dumps(first), json.dumps(second)])
    run(tmp_path / "again" / "log", tmp_path / "twice", reward=None, **rule)
    assert (tmp_path / "twice" / "part-00000.jsonl").read_bytes() == (
        tmp_path / "out" / "part-00000.jsonl"
    ).read_bytes()
    rescored(log)
    run(log, tmp_path / "new", **rule)
    assert set(lines(tmp_path / "new")[0]["scores"]) == {"a", "b", "new"}
    with LogReader(tmp_path / "again" / "log") as reader:
        assert score_files(tmp_path / "again" / "log") == []
        (with_parts, _) = reader.records()
    assert [one.rewards for one in with_parts.candidates] == [one.rewards for one in candidates]


def test_killed_between_its_steps_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = commit(tmp_path / "log", sampled(20))
    rescored(log)
    run(log, tmp_path / "whole", written=Written(shard_rows=3))

    class Killed(BaseException):
        pass

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("bon_server.offline.select.exporting.write_piece", killed)
        with pytest.raises(Killed):
            run(log, tmp_path / "out", written=Written(shard_rows=3))
    run(log, tmp_path / "out", written=Written(shard_rows=3))
    assert training_set(tmp_path / "out") == training_set(tmp_path / "whole")


def test_damaged_scores_stop_it_unless_it_is_told_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "CHUNK_REQUESTS", 16)
    log = tmp_path / "log"
    with closing(Spool.open(log)) as spool:
        for first in range(0, 40, 10):  # so that one file of scores is of two segments
            spool.append(sampled(10, first=first))
            seal(spool)
    rescored(log)
    _, file, _ = score_files(log, "new")
    file.path.write_bytes(file.path.read_bytes()[:-1])
    with pytest.raises(LogError, match=r"scores/new/.*damaged"):
        run(log, tmp_path / "refused")
    damage: list[LogError] = []
    options = SelectOptions((log,), BEST, tmp_path / "out", filters=Filters(reward="new"))
    manifest = select(options, on_damage=damage.append)
    assert len(damage) == 1 and str(file.path) in str(damage[0])
    lost = sum(len(one.candidates) for one in sampled(16, first=16))
    assert manifest["counts"]["dropped"]["not_rescored"] == lost > 0 < manifest["counts"]["selected"]


def test_a_reward_that_is_gone_when_the_lines_are_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = commit(tmp_path / "log", sampled(20))
    rescored(log)
    (file,) = score_files(log, "new")

    def damaging(*arguments: Any) -> Any:
        file.path.write_bytes(file.path.read_bytes()[:-1])
        return fetch(*arguments)

    monkeypatch.setattr("bon_server.offline.select.exporting.fetch", damaging)
    with pytest.raises(LogError, match=r"lost the reward .*damaged"):
        run(log, tmp_path / "out")
