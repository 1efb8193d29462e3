"""`bon rescore`: every logged completion gets its score once, under one model, and the log stays as it is."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import CandidateStatus, FinishReason, Kind, Message, Score
from bon_server.log.read.reader import LogReader
from bon_server.log.read.stats import log_stats
from bon_server.log.scores.files import FOLDER, score_files
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from bon_server.models.reward.synthetic import SyntheticReward
from bon_server.offline.rescore import rescore as module
from bon_server.offline.rescore.rescore import count_candidates, default_name
from tests.command import run_bon
from tests.log.records import ODD_TEXT, record, scored
from tests.log.seal.test_sealing import seal
from tests.offline.grouped_files import import_lines, line
from tests.offline.rescore.rescoring import (
    commit,
    expected,
    half_sealed,
    joined,
    rescored,
    sampled,
    score_bytes,
    score_rows,
)


def test_every_candidate_of_segments_and_spool_gets_its_score(tmp_path: Path) -> None:
    log = half_sealed(tmp_path / "log")
    before = {path: path.read_bytes() for path in log.glob("segments/*/*/*.parquet")}
    result = rescored(log)
    total = len(joined(log))
    assert result["requests"] == 50 and result["candidates"] == result["scored"] == total > 100
    assert result["already"] == 0 and result["by_status"]["scored"] == total == count_candidates(log)
    assert result["reward_models"] == [{"name": "default", "id": "synthetic", "revision": result_revision()}]
    assert joined(log) == expected(log)
    assert {path: path.read_bytes() for path in log.glob("segments/*/*/*.parquet")} == before
    report = verify(log)
    assert report["ok"] and report["problems"] == [] == report["notes"]
    assert log_stats(log)["scores"] == {"new": {"requests": 50, "scored": total}}


def result_revision() -> str:
    return SyntheticReward.from_spec("synthetic").refs[0].revision


def test_while_a_server_holds_the_log_and_seals(tmp_path: Path) -> None:
    log = half_sealed(tmp_path / "log")
    with closing(Spool.open(log)) as spool:
        rescored(log)
        unsealed = score_bytes(log)
        assert joined(log) == expected(log)
        seal(spool)
        assert joined(log) == expected(log)
        assert rescored(log)["already"] == len(joined(log))
        spool.append(sampled(5, first=50))
        assert rescored(log)["already"] < len(joined(log))
    assert joined(log) == expected(log)
    after = score_bytes(log)
    assert {name: after[name] for name in unsealed} == unsealed and len(after) == len(unsealed) + 1


def test_sealed_before_or_after_the_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_REQUESTS", 8)
    log = half_sealed(tmp_path / "log")
    rescored(log, name="before")
    with closing(Spool.open(log)) as spool:
        seal(spool)
    rescored(log, name="after")
    names = sorted(file.path.name for file in score_files(log, "before"))
    assert len(names) == 7 and names == sorted(file.path.name for file in score_files(log, "after"))
    assert score_rows(log, "before") == score_rows(log, "after")


def test_large_completions_are_scored_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_CHARS", 100)
    log = commit(tmp_path / "log", sampled(50))
    rescored(log)
    assert len(score_files(log, "new")) > 5
    assert joined(log) == expected(log)


def test_another_engine_joins_them_as_the_page_says(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    page = Path(__file__).parents[3] / "docs" / "rescoring.md"
    (query,) = re.findall(r"^```sql\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    log = half_sealed(tmp_path / "log")
    with closing(Spool.open(log)) as spool:
        seal(spool)
    rescored(log)
    with duckdb.connect() as connection:
        rows = connection.sql(query.replace("LOG/", f"{log}/").replace("/NAME/", "/new/")).fetchall()
    with LogReader(log) as reader:
        wanted = [
            (record.request_id, one.index, one.reward, one.rewards["new"])
            for record in reader.records()
            for one in record.candidates
        ]
    assert sorted(rows) == sorted(wanted)


def test_what_failed_is_marked(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(60))
    result = rescored(log, "synthetic:nan_rate=0.2,fail_rate=0.2")
    statuses = result["by_status"]
    assert all(statuses[name] > 5 for name in ("scored", "non_finite", "failed")) and statuses["too_long"] == 0
    assert result["scored"] == statuses["scored"] == sum(reward is not None for _, reward in joined(log))
    rows = [one for row in score_rows(log) for one in row["candidates"]]
    assert Counter(one["status"] for one in rows) == Counter({k: v for k, v in statuses.items() if v})
    assert all((one["reward"] is not None) == (one["status"] == "scored") for one in rows)
    assert {one["error"] for one in rows} == {None, "synthetic failure"}
    assert verify(log)["ok"]
    again = rescored(log, "synthetic:nan_rate=0.2,fail_rate=0.2")
    assert (again["scored"], again["already"]) == (0, again["candidates"]) and again["by_status"] == statuses


def test_kinds_and_what_cannot_be_scored(tmp_path: Path) -> None:
    log = tmp_path / "log"
    candidates = (
        scored(0, 1.0, text="whole"),
        scored(1, 1.0, text="cut", finish_reason=FinishReason.LENGTH),
        scored(2, 1.0, text="par", finish_reason=FinishReason.CANCELLED),
        scored(3, 1.0, text="pru", finish_reason=FinishReason.PRUNED),
        scored(4, 1.0, text="", finish_reason=FinishReason.STOP),
    )
    commit(
        log,
        [
            record("generated", candidates=candidates),
            record("given", kind=Kind.SCORE, candidates=(scored(0, 1.0, text=ODD_TEXT, finish_reason=None),)),
            record("text", prompt_text="to be continued", prompt_messages=None),
            record("tokens", prompt_messages=None),
            record("secret", content_logged=False, prompt_messages=None, candidates=(scored(0, 1.0, text=""),)),
        ],
    )
    import_lines(tmp_path, [line("imported", [0.5, None])])
    result = rescored(log)
    told = {row["request_id"]: [one["status"] for one in row["candidates"]] for row in score_rows(log)}
    assert told.pop("generated") == ["scored", "scored", "unscored", "unscored", "scored"]
    assert told.pop("given") == ["scored"] and told.pop("text") == ["scored", "scored"]
    assert told.pop("tokens") == ["unscored", "unscored"] and told.pop("secret") == ["unscored"]
    assert list(told.values()) == [["scored", "scored"]]
    assert result["by_status"] == dict.fromkeys(CandidateStatus, 0) | {"scored": 8, "unscored": 5}


def test_equal_completions_are_asked_once_and_context_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    async def score(self: SyntheticReward, prompt: Any, completion: str, context: dict[str, str]) -> Score:
        asked.append((completion, context.get("answer", "")))
        return Score(CandidateStatus.SCORED, float(context.get("answer", "0")))

    monkeypatch.setattr(SyntheticReward, "score", score)
    same = (scored(0, 1.0, text="same"), scored(1, 0.0, text="same"), scored(2, 0.0, text="longer"))
    commit(tmp_path, [record("a", candidates=same), record("b", candidates=same, reward_context={"answer": "7"})])
    rescored(tmp_path)
    assert sorted(asked) == [("longer", ""), ("longer", "7"), ("same", ""), ("same", "7")]
    assert [len(text) for text, _ in asked] == [4, 4, 6, 6]  # in order of length
    assert [reward for _, reward in joined(tmp_path)] == [0.0] * 3 + [7.0] * 3


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(3))
    first = rescored(log)["reward_models"][0]["revision"]
    before = score_bytes(log)
    with pytest.raises(LogError) as refused:
        rescored(log, "synthetic:nan_rate=0.5")
    second = SyntheticReward.from_spec("synthetic:nan_rate=0.5").refs[0].revision
    assert first in str(refused.value) and second in str(refused.value) and "--name" in str(refused.value)
    assert score_bytes(log) == before
    rescored(log, "synthetic:nan_rate=0.5", name="other")
    assert rescored(log, "called=synthetic")["scored"] == 0  # what it is called does not matter


def test_a_function_that_prints_hangs_and_dies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ("print hello", "backtrack", "exit", "raise KeyboardInterrupt", "abc")
    candidates = tuple(scored(index, 1.0, text=text) for index, text in enumerate(texts))
    commit(tmp_path / "log", [record(candidates=candidates)])
    reward = "odd=function:tests.models.reward.odd_rewards:plain"
    words = ["--reward", reward, "--set", "reward.timeout_s=0.5", "--json"]
    done = run_bon("rescore", "--log", tmp_path / "log", *words)
    assert json.loads(done.stdout)["by_status"]["failed"] == 3
    assert capfd.readouterr().out == ""
    errors = [one["error"] for one in score_rows(tmp_path / "log", "odd")[0]["candidates"]]
    assert errors == [None, "timeout", "worker died", "KeyboardInterrupt", None]


def test_an_ensemble_is_one_score_with_its_parts(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(3))
    words = ["--reward", "a=synthetic", "--reward", "b=synthetic:nan_rate=0", "--set", "reward.combine=min", "--json"]
    done = run_bon("rescore", "--log", str(log), *words)
    result = json.loads(done.stdout)
    assert result["name"] == "ensemble" and [one["id"] for one in result["reward_models"]] == ["synthetic"] * 2 + [
        "min"
    ]
    one = next(row for row in score_rows(log, "ensemble") if row["candidates"])["candidates"][0]
    assert {entry["key"] for entry in one["rewards"]} == {"a", "b"} and one["reward"] is not None


@pytest.mark.parametrize("name", ["reward", "tokens", "../x", "", ".hidden", "a/b"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    commit(tmp_path, sampled(1))
    with pytest.raises(ConfigError, match="name"):
        module.rescore(module.RescoreOptions(tmp_path, RewardConfig(models=("synthetic",)), name or "\n"))
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(
    ("models", "name"),
    [
        (("helpful=org/model",), "helpful"),
        (("org/model",), "org-model"),
        (("vllm:org/model",), "org-model"),
        (("function:module:name",), "function-module-name"),
        (("synthetic:seconds=1",), "synthetic-seconds-1"),
        (("a=x", "b=y"), "ensemble"),
    ],
)
def test_a_name_is_made_of_the_model(models: tuple[str, ...], name: str) -> None:
    assert default_name(models) == name


def test_wrong_models_and_no_log_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(LogError):
        rescored(tmp_path / "log")
    commit(tmp_path / "log", sampled(1))
    for model in ("synthetic:what=1", str(tmp_path / "nothing")):
        with pytest.raises(Exception, match=r"synthetic has no option|nothing"):
            rescored(tmp_path / "log", model)
    assert score_bytes(tmp_path / "log") == {}


def test_scores_of_another_log_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(3))
    rescored(log)
    (log / "spool.sqlite").rename(tmp_path / "gone")
    commit(log, [record("other", candidates=(scored(0, 1.0),))])
    with LogReader(log) as reader:
        (writer,) = reader.writers
    (folder,) = (log / FOLDER / "new").glob("writer=*")
    folder.rename(folder.with_name(f"writer={writer}"))
    with pytest.raises(LogError, match="another record"):
        rescored(log)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_real_model_gives_the_same_bytes_every_time(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same rewards as asked one by one, but for what no one can read."""
    import asyncio

    from bon_server.models.starting import start_reward
    from tests import tiny_models

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save = tiny_models.save_encoder_reward if kind == "encoder" else tiny_models.save_decoder_reward
    model = str(save(tmp_path / "model"))
    log = commit(tmp_path / "log", sampled(40))
    long = (scored(0, 1.0, text="a b " * 3_000), scored(1, 0.5, text="short"))
    commit(log, [record("long", candidates=long, prompt_messages=(Message("user", "x"),))])
    first = rescored(log, model, "first", batch_tokens=256)
    rescored(log, model, "second", batch_tokens=256)
    assert score_rows(log, "first") == score_rows(log, "second")
    assert first["by_status"]["too_long"] == 1 and first["scored"] == first["candidates"] - 1
    assert len(first["reward_models"][0]["revision"]) == 64

    async def alone(record: Any) -> list[float | None]:
        one = await start_reward(RewardConfig(models=(model,)))
        scores = [await one.score(record.prompt, candidate.text, {}) for candidate in record.candidates]
        await one.close()
        return [score.reward for score in scores]

    with LogReader(log) as reader:
        some = next(record for record in reader.records() if len(record.candidates) > 3)
    rewards = [one.rewards["first"] for one in some.candidates]
    assert rewards == pytest.approx(asyncio.run(alone(some)), abs=1e-4)
