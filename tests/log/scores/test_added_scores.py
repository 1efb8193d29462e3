"""Added scores beside a log: joined to the right candidates, gone with their records, checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus, ModelRef
from bon_server.log.read.reader import LogReader, refuse_damage
from bon_server.log.read.stats import log_stats
from bon_server.log.record import Record
from bon_server.log.remove.erase import erase
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.remove.rewrite import Match
from bon_server.log.scores.files import FOLDER, ScoreFile, changing_scores, score_files, write_model, write_scores
from bon_server.log.scores.joined import KEY, NOT_THERE, STATUSES, AddedScores, join
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from bon_server.offline.rescore import rescore as module
from bon_server.offline.rescore.rescorable import score_all
from tests.command import run_bon
from tests.log.records import record, scored
from tests.log.remove.test_erase import BY_ID, BY_TAG, OTHERS, SECRET, holding
from tests.log.remove.test_erase import log as log
from tests.log.seal.test_sealing import seal

MODELS = (ModelRef("new", "a-model", "1"),)


def rescored(log: Path) -> None:
    module.rescore(module.RescoreOptions(log, RewardConfig(models=("synthetic",)), "new"))


def row(ordinal: int, candidates: list[tuple[float | None, str]]) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "principal": "",
        "request_id": f"r{ordinal}",
        "attempt": 1,
        "candidates": [
            {"index": index, "reward": reward, "rewards": [], "status": status, "error": None}
            for index, (reward, status) in enumerate(candidates)
        ],
    }


def keys(ordinals: list[int]) -> Any:
    """Of the records whose scores `row` makes, an Arrow batch."""
    rows = [row(ordinal, []) for ordinal in ordinals]
    return pa.RecordBatch.from_pydict({name: [one[name] for one in rows] for name in KEY})


def refuse(file: ScoreFile, error: LogError) -> None:
    raise error


some_candidates = st.lists(
    st.one_of(
        st.tuples(st.floats(-5, 5), st.just("scored")),
        st.tuples(st.none(), st.sampled_from(["failed", "non_finite", "too_long", "unscored"])),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(1, 40), some_candidates, min_size=1),
    st.sets(st.integers(1, 40)),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_join_is_a_lookup(
    log: dict[int, list[tuple[float | None, str]]], not_rescored: set[int], size: int, shuffler: Any
) -> None:
    """Rows in any order, with gaps, over any number of files, of two writers."""
    there = [ordinal for ordinal in sorted(log) if ordinal not in not_rescored]
    order = list(log)
    shuffler.shuffle(order)
    with TemporaryDirectory() as folder:
        for first in range(0, len(there), size):
            write_scores(Path(folder), "new", "mine", [row(one, log[one]) for one in there[first : first + size]])
        files = [file for file in score_files(Path(folder), "new") if file.writer == "mine"]
        lengths = np.array([len(log[one]) for one in order])
        rewards, statuses = join(files, keys(order), lengths, refuse)
    expected = [pair if one in there else (None, None) for one in order for pair in log[one]]
    found = [None if np.isnan(reward) else float(reward) for reward in rewards]
    told = [None if code == NOT_THERE else STATUSES[code].value for code in statuses]
    assert list(zip(found, told, strict=True)) == expected


def test_every_reader_sees_them(log: Path) -> None:
    rescored(log)
    done = run_bon("log", "records", "--log", str(log), "--long")
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert len(rows) > 40 and all("new" in row["rewards"] for row in rows)
    snapshot = run_bon("log", "records", "--log", str(log), "--snapshot", "before")
    assert all("new" in one["rewards"] for one in json.loads(snapshot.stdout)["candidates"])
    with LogReader(log) as reader:
        logged = [one for batch in reader.batches() for row in batch["candidates"].to_pylist() for one in row]
    assert not any(one["rewards"] for one in logged)  # in the log itself nothing has changed


def scored_requests(log: Path) -> set[str]:
    from bon_server.log.scores.files import read_scores

    return {id for file in score_files(log) for id in read_scores(file.path)["request_id"].to_pylist()}


@pytest.mark.parametrize("match", [BY_ID, BY_TAG], ids=["id", "tag"])
def test_erasing_records_erases_their_scores(log: Path, match: Match) -> None:
    rescored(log)
    assert SECRET in scored_requests(log) and holding(log / FOLDER, SECRET)
    result = erase(log, match)
    assert result["scores"] == 4 == result["records"]
    assert any(file.startswith("scores/new/") for file in result["rewritten"])
    assert scored_requests(log) == OTHERS and holding(log, SECRET) == []
    assert verify(log)["ok"] and erase(log, match)["scores"] == 0
    with LogReader(log) as reader:
        assert all("new" in one.rewards for record in reader.records() for one in record.candidates)


def test_a_file_of_nothing_else_goes(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("secret", tags={"user": SECRET})])
    rescored(tmp_path)
    erase(tmp_path, BY_TAG)
    assert score_files(tmp_path) == [] and verify(tmp_path)["ok"]


def test_what_is_erased_while_it_is_scored_gets_no_scores(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = score_all

    async def erasing(*arguments: Any) -> Any:
        scores = await asked(*arguments)
        erase(log, BY_ID)
        return scores

    monkeypatch.setattr(module, "score_all", erasing)
    rescored(log)
    assert scored_requests(log) == OTHERS and holding(log, SECRET) == []


def test_an_erasure_waits_while_scores_are_written(log: Path) -> None:
    """And a rescoring while an erasure runs: the same lock."""
    import threading

    rescored(log)
    erasing = threading.Thread(target=erase, args=(log, BY_ID))
    with changing_scores(log):
        erasing.start()
        erasing.join(0.3)
        assert erasing.is_alive() and SECRET in scored_requests(log)
    erasing.join(60)
    assert SECRET not in scored_requests(log)


class _Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["erase_scores", "_Erasure._forget", "_Erasure._scrub"])
def test_an_erasure_cut_off_is_finished_by_the_same_command(
    log: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*arguments: Any) -> None:
        raise _Crash

    rescored(log)
    with monkeypatch.context() as patch:
        patch.setattr(f"bon_server.log.remove.erase.{step}", crash)
        with pytest.raises(_Crash):
            erase(log, BY_TAG)
    erase(log, BY_TAG)
    assert scored_requests(log) == OTHERS and holding(log, SECRET) == [] and verify(log)["ok"]


def test_expired_records_take_their_scores_along(tmp_path: Path) -> None:
    days = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)]
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}", created_at=days[i % 2]) for i in range(10)])
        seal(spool)
        spool.append([record("unsealed", created_at=days[1])])
        rescored(tmp_path)
        gone = expire(spool, Retention(1.0, None), datetime(2026, 1, 3, 1, tzinfo=UTC))
    assert gone.records == 5
    assert scored_requests(tmp_path) == {"unsealed", *(f"r{i}" for i in range(1, 10, 2))}
    assert verify(tmp_path)["ok"]
    with LogReader(tmp_path) as reader:
        assert all("new" in one.rewards for record in reader.records() for one in record.candidates)


@pytest.fixture
def scores(tmp_path: Path) -> Iterator[Path]:
    """A log with a file of scores."""
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}", candidates=(scored(0, 1.0),)) for i in range(3)])
    rescored(tmp_path)
    yield tmp_path


def problems(log: Path) -> list[tuple[str, str]]:
    report = verify(log)
    assert report["ok"] == (not report["problems"])
    return [(one["kind"], one["file"]) for one in report["problems"]]


def test_damaged_scores_stop_a_reader_unless_it_is_told_to_go_on(scores: Path) -> None:
    (file,) = score_files(scores)
    file.path.write_bytes(file.path.read_bytes()[:-1])
    with LogReader(scores) as reader, pytest.raises(LogError, match=r"scores/new/.*damaged"):
        list(reader.records())
    damage: list[LogError] = []
    with LogReader(scores, damage.append) as reader:
        assert [one.rewards for record in reader.records() for one in record.candidates] == [{}] * 3
    assert len(damage) == 1
    with pytest.raises(LogError, match=r"scores/new/.*damaged"):
        log_stats(scores)
    assert log_stats(scores, damage.append)["scores"] == {"new": {"requests": 0, "scored": 0}} and len(damage) == 2


def test_a_file_that_an_erasure_removes_meanwhile_is_no_damage(scores: Path) -> None:
    added = AddedScores(scores, on_damage=refuse_damage)
    with LogReader(scores) as reader:
        position, one = next(reader.fields(Record))
    (file,) = score_files(scores)
    file.path.unlink()
    assert [each.rewards for each in added.joined(reader.writers[position.writer], one).candidates] == [{}]


@pytest.mark.parametrize("lost", [record("r1", attempt=2), record("other"), record("r1", principal="somebody")])
def test_scores_of_a_lost_record_are_not_those_of_the_next_one_with_its_ordinal(tmp_path: Path, lost: Record) -> None:
    """With durability `async` a power cut may take records whose scores are on disk already."""
    log, before = tmp_path / "log", tmp_path / "before"
    with closing(Spool.open(log)) as spool:
        spool.append([record("r0")])
    shutil.copytree(log, before)
    with closing(Spool.open(log)) as spool:
        spool.append([lost])
    rescored(log)
    shutil.copytree(log / FOLDER, before / FOLDER)
    with closing(Spool.open(before)) as spool:
        spool.append([record("r1")])
    with LogReader(before) as reader, pytest.raises(LogError, match=r"row 2 is of another record"):
        list(reader.records())
    damage: list[LogError] = []
    with LogReader(before, damage.append) as reader:
        assert not any(one.rewards for record in reader.records() if record.ordinal == 2 for one in record.candidates)
    assert len(damage) == 1
    with pytest.raises(LogError, match="another record"):
        rescored(before)
    (file,) = score_files(before)
    assert problems(before) == [("scores_unfit", file.path.relative_to(before).as_posix())]
    file.path.unlink()
    rescored(before)
    assert problems(before) == [] and scored_requests(before) == {"r0", "r1"}


def test_verify_finds_damage(scores: Path) -> None:
    (file,) = score_files(scores)
    name = file.path.relative_to(scores).as_posix()
    assert problems(scores) == []
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:40] + b"xxxx" + whole[44:])
    assert problems(scores) == [("scores_damaged", name)]
    file.path.write_bytes(whole)
    shutil.copy(file.path, file.path.with_name("000000000001-000000000002.parquet"))
    assert {kind for kind, _ in problems(scores)} == {"scores_unfit"}
    file.path.with_name("000000000001-000000000002.parquet").unlink()
    bad = write_scores(scores, "new", "other", [row(1, [(None, CandidateStatus.SCORED.value)])])
    assert problems(scores) == [("scores_unfit", bad.relative_to(scores).as_posix())]
    bad.unlink()
    (scores / FOLDER / "new" / "model.json").write_text("{")
    assert problems(scores) == [("scores_damaged", "scores/new/model.json")]
    (scores / FOLDER / "new" / "model.json").unlink()
    assert problems(scores) == [("scores_damaged", "scores/new/model.json")]
    write_model(scores, "new", MODELS)
    (scores / FOLDER / "new" / "notes.txt").write_text("mine")
    assert problems(scores) == [("foreign_file", "scores/new/notes.txt")]
