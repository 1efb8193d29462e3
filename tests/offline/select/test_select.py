"""`bon select` from an imported or served log to the training file."""

from __future__ import annotations

import json
import math
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Candidate, CandidateStatus, FinishReason, Kind, Message, Outcome
from bon_server.log.record import Record
from bon_server.log.spool.spool import Spool
from bon_server.offline.select.manifest import Manifest
from bon_server.offline.select.options import Filters
from bon_server.offline.select.select import SelectOptions, select
from bon_server.system.files import sha256_of
from tests.log.records import ODD_TEXT, record, scored
from tests.offline.grouped_files import import_lines, line, worked_example

BEST, TOP_K = OfflineRule.BEST_PER_PROMPT, OfflineRule.TOP_K_OVERALL


def run(folder: Path, rule: OfflineRule = BEST, logs: tuple[str, ...] = ("log",), **options: Any) -> Manifest:
    """Selects into `folder/out`; options that are filters become some."""
    out = folder / options.pop("out", "out")
    filters = Filters(**{name: options.pop(name) for name in Filters.__dataclass_fields__ if name in options})
    return select(SelectOptions(tuple(folder / log for log in logs), rule, out, filters=filters, **options))


def rows(folder: Path, part: str = "part-00000.jsonl") -> list[Any]:
    return [json.loads(text) for text in (folder / part).read_text().splitlines()]


def completions(folder: Path) -> list[str]:
    return [row["completion"][0]["content"] for row in rows(folder)]


def serve(folder: Path, *served: Record, log: str = "log") -> None:
    """Commits records as a server would."""
    with closing(Spool.open(folder / log)) as spool:
        spool.append(served)


def chosen(folder: Path, **options: Any) -> list[str]:
    """Completions chosen with these options, in a fresh output folder each time."""
    out = f"out{len(list(folder.iterdir()))}"
    run(folder, out=out, **options)
    return completions(folder / out)


def ranked(folder: Path) -> list[int]:
    """Flat indices of the worked example, best first."""
    meta = sorted(pq.read_table(folder / "meta.parquet").to_pylist(), key=lambda row: int(row["rank"]))
    return [4 * (row["ordinal"] - 1) + row["candidate_index"] for row in meta]


def test_the_worked_example(tmp_path: Path) -> None:
    import_lines(tmp_path, worked_example())
    manifest = run(tmp_path, BEST, out="best")
    assert completions(tmp_path / "best") == ["0.0", "1.1", "2.0", "3.2", "4.3"]
    assert rows(tmp_path / "best")[0] == {
        "prompt": [{"role": "user", "content": "prompt 0"}],
        "completion": [{"role": "assistant", "content": "0.0"}],
    }
    assert manifest["counts"] == {
        "requests": 5,
        "prompts": 5,
        "candidates": 20,
        "eligible": 20,
        "dropped": {},
        "selected": 5,
    }
    for k, best_first in ((5, [8, 5, 14, 0, 11]), (4, [8, 5, 14, 0]), (6, [8, 5, 14, 0, 11, 6])):
        run(tmp_path, TOP_K, out=f"top{k}", k=k)
        assert ranked(tmp_path / f"top{k}") == best_first
        in_log_order = [f"{flat // 4}.{flat % 4}" for flat in sorted(best_first)]
        assert completions(tmp_path / f"top{k}") == in_log_order


def test_the_manifest_describes_the_files_and_is_the_same_every_time(tmp_path: Path) -> None:
    serve(tmp_path, *(record(f"r{i}", (0.1 * i, 0.5), prompt_messages=(Message("user", str(i)),)) for i in range(6)))
    manifest = run(tmp_path)
    out = tmp_path / "out"
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert {path.name for path in out.iterdir()} == {"manifest.json", "meta.parquet", "part-00000.jsonl"}
    for output in manifest["outputs"]:
        assert output["sha256"] == sha256_of(out / output["file"]) and output["rows"] == 6
    assert [output["role"] for output in manifest["outputs"]] == ["data", "meta"]
    assert manifest["inputs"][0]["rows"] == 6 and manifest["inputs"][0]["last_ordinal"] == 6
    assert manifest["policies"] == [
        {"id": "a-policy", "revision": "abcd", "candidates": 12, "selected": 6, "share": 1.0}
    ]
    assert manifest["reward_models"] == [{"name": "reward", "id": "a-reward-model", "revision": "1f2e"}]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "part-00000.jsonl").write_text("damage")
    assert run(tmp_path) == manifest
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_sidecar_says_where_each_row_is_from(tmp_path: Path) -> None:
    candidates = (scored(0, 0.1), scored(1, 0.9, text="best"))
    serve(tmp_path, record("other", (-1.0,)), record("mine", principal="ann", attempt=2, candidates=candidates))
    run(tmp_path)
    (row,) = pq.read_table(tmp_path / "out" / "meta.parquet").to_pylist()
    expected = {
        "file": "part-00000.jsonl",
        "line": 0,
        "role": None,
        "rank": 1,
        "weight": 1.0,
        "value": 0.9,
        "log": str(tmp_path / "log"),
        "writer": 0,
        "ordinal": 2,
        "principal": "ann",
        "request_id": "mine",
        "attempt": 2,
        "kind": "generate",
        "n": 2,
        "candidate_index": 1,
        "reward": 0.9,
        "finish_reason": "stop",
        "completion_tokens": 60,
        "policy_id": "a-policy",
        "policy_revision": "abcd",
        "prompt_hash": record().prompt_hash,
    }
    assert row == expected


def test_requests_of_one_prompt_are_merged_unless_told_not_to(tmp_path: Path) -> None:
    import_lines(tmp_path, [line("a", [0.1, 0.5]), line("b", [0.3]), line("a", [0.9, 0.2]), line("a", [0.9])])
    assert chosen(tmp_path) == ["b.0", "a.0"]
    assert chosen(tmp_path, merge=False) == ["a.1", "b.0", "a.0", "a.0"]


@pytest.mark.parametrize("rule", [TOP_K, OfflineRule.RANDOM_TOP_K_OVERALL])
def test_at_most_so_many_of_a_prompt_leaves_no_place_empty(tmp_path: Path, rule: OfflineRule) -> None:
    """Requests of one prompt that beat all others, of which only one may be chosen."""
    import_lines(tmp_path, [line("a", [0.9]), line("a", [0.8]), line("a", [0.7]), line("b", [0.1]), line("c", [0.2])])
    for seed in range(4):
        assert len({text[0] for text in chosen(tmp_path, rule=rule, k=3, max_per_prompt=1, seed=seed)}) == 3


def test_the_same_words_with_another_reference_answer_are_another_prompt(tmp_path: Path) -> None:
    import_lines(tmp_path, [line("a", [0.1], reward_context={"answer": str(i)}) for i in range(2)])
    assert run(tmp_path)["counts"]["prompts"] == 2


def test_truncated_candidates_are_dropped_before_choosing(tmp_path: Path) -> None:
    lines = [
        line("a", [0.9, 0.5, 0.1], finish_reasons=["length", "stop", None]),
        line("b", [0.9, 0.5], finish_reasons=["length", "length"]),
        line("c", [0.2, 0.9], finish_reasons=[None, "cancelled"]),
    ]
    import_lines(tmp_path, lines)
    manifest = run(tmp_path)
    assert completions(tmp_path / "out") == ["a.1", "c.0"]
    assert manifest["counts"]["dropped"] == {"cancelled": 1, "length": 3}
    assert chosen(tmp_path, keep_truncated=True) == ["a.0", "b.0", "c.0"]


def test_every_candidate_is_chosen_from_or_counted_with_its_reason(tmp_path: Path) -> None:
    statuses = [status for status in CandidateStatus if status is not CandidateStatus.SCORED]
    unscored = [Candidate(i + 1, status, finish_reason=FinishReason.STOP) for i, status in enumerate(statuses)]
    serve(
        tmp_path,
        record("mixed", candidates=(scored(0, 0.5), *unscored), outcome=Outcome.PARTIAL),
        record("score", (9.0, 9.0), kind=Kind.SCORE),
        record("tokens", (9.0,), prompt_messages=None, prompt_hash="t"),
        record("hidden", (9.0,), content_logged=False),
        record("failed", (0.75,), outcome=Outcome.FAILED),
    )
    counts = run(tmp_path)["counts"]
    reasons = {"kind_score": 2, "prompt_tokens": 1, "no_content": 1} | {status.value: 1 for status in statuses}
    assert counts["dropped"] == reasons
    assert counts["candidates"] == counts["eligible"] + sum(reasons.values())
    assert completions(tmp_path / "out") == ["answer 0"] and counts["selected"] == 1
    (row,) = pq.read_table(tmp_path / "out" / "meta.parquet").to_pylist()
    assert row["request_id"] == "failed", "what a failed attempt scored is data"
    run(tmp_path, out="with-scored", kinds=(Kind.SCORE,))
    (row,) = pq.read_table(tmp_path / "with-scored" / "meta.parquet").to_pylist()
    assert row["request_id"] == "score"


def test_a_log_without_anything_to_choose_gives_an_empty_training_set(tmp_path: Path) -> None:
    import_lines(tmp_path, [line("a", [None])])
    manifest = run(tmp_path)
    assert manifest["counts"]["selected"] == 0 and rows(tmp_path / "out") == []
    assert pq.read_table(tmp_path / "out" / "meta.parquet").num_rows == 0


def test_chats_and_texts_go_to_files_of_their_own(tmp_path: Path) -> None:
    serve(
        tmp_path,
        record("t", (0.5,), prompt_text="Once upon", prompt_messages=None),
        record("c", (0.75,)),
        record("u", (0.5,), prompt_text=ODD_TEXT, prompt_messages=None, candidates=(scored(0, 0.5, text=ODD_TEXT),)),
    )
    manifest = run(tmp_path)
    assert [(one["file"], one.get("prompts"), one["rows"]) for one in manifest["outputs"]] == [
        ("part-00000.jsonl", "chat", 1),
        ("part-00001.jsonl", "text", 2),
        ("meta.parquet", None, 3),
    ]
    texts = [json.loads(text) for text in (tmp_path / "out" / "part-00001.jsonl").read_bytes().split(b"\n")[:-1]]
    assert texts[0] == {"prompt": "Once upon", "completion": "answer 0"}
    assert texts[1] == {"prompt": ODD_TEXT, "completion": ODD_TEXT}
    meta = pq.read_table(tmp_path / "out" / "meta.parquet").to_pylist()
    assert [(row["file"], row["line"], row["reward"]) for row in meta] == [
        ("part-00000.jsonl", 0, 0.75),
        ("part-00001.jsonl", 0, 0.5),
        ("part-00001.jsonl", 1, 0.5),
    ]


@pytest.mark.parametrize("rule", [OfflineRule.RANDOM_BEST_PER_PROMPT, OfflineRule.RANDOM_TOP_K_OVERALL])
def test_controls_draw_the_same_from_a_shuffled_log_and_differ_by_seed(tmp_path: Path, rule: OfflineRule) -> None:
    lines = [line(str(i), [0.1 * j for j in range(8)], id=f"id{i}") for i in range(12)]
    lines[3]["rewards"][2] = None
    import_lines(tmp_path, lines, log="one", reward_model="rm")
    import_lines(tmp_path, lines[::-1], log="two", reward_model="rm")
    k = 5 if rule.needs_k else None
    drawn = [sorted(chosen(tmp_path, rule=rule, logs=(log,), k=k, seed=1)) for log in ("one", "two")]
    assert drawn[0] == drawn[1] and len(drawn[0]) == (k or 12)
    assert sorted(chosen(tmp_path, rule=rule, logs=("one",), k=k, seed=2)) != drawn[0]
    everything = {text for seed in range(40) for text in chosen(tmp_path, rule=rule, logs=("one",), k=k, seed=seed)}
    assert "3.2" not in everything and len(everything) > 60


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rule": TOP_K}, "k: None given"),
        ({"rule": TOP_K, "k": 0}, "k: 0 given"),
        ({"rule": BEST, "k": 3}, "k: 3 given; the rule best-per-prompt takes none"),
        ({"format": "csv"}, "format: 'csv' given; allowed are trl-sft"),
        ({"format": "trl-dpo"}, "format: 'trl-dpo' given; it does not hold what best-per-prompt chooses"),
        ({"rule": OfflineRule.PAIRS, "format": "trl-sft"}, "it does not hold what pairs chooses"),
        ({"rule": OfflineRule.PAIRS, "margin": -1.0}, "margin: -1.0 given"),
        ({"rule": OfflineRule.PAIRS, "against": "all"}, "against: 'all' given; allowed are worst, random"),
        ({"rule": OfflineRule.THRESHOLD}, "needs either a threshold or a quantile"),
        ({"rule": OfflineRule.THRESHOLD, "threshold": math.nan}, "threshold: nan given"),
        ({"rule": OfflineRule.SOFT, "temperature": 0.0}, "temperature: 0.0 given"),
        ({"rule": OfflineRule.SOFT, "weights": True, "k": 2}, "with weights all are chosen"),
        ({"temperature": 1.0}, "temperature: 1.0 given; the rule best-per-prompt takes none"),
        ({"duplicates": "some"}, "duplicates: 'some' given"),
        ({"kinds": ("chat",)}, r"kinds: \('chat',\) given; allowed are generate, score, import"),
        ({"predicate": "nowhere"}, "expected module:function"),
        ({"since": datetime(2026, 1, 1)}, "since: 2026-01-01T00:00:00 given; it needs a time zone"),
        ({"min_spread": math.nan}, "min_spread: nan given; allowed are finite numbers"),
        ({"logs": ()}, "log: none given"),
        ({"logs": ("log", "log")}, "each folder may be named once"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(tmp_path, **options)


def test_no_log_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="holds no log"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_progress_is_told(tmp_path: Path) -> None:
    import_lines(tmp_path, worked_example())
    told: list[int] = []
    select(SelectOptions((tmp_path / "log",), BEST, tmp_path / "out"), told.append)
    assert told == [5]
