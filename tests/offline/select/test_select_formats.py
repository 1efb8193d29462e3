"""Each format, line by line, in shards and compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import LogError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Message
from bon_server.offline.select.formats import FORMATS
from bon_server.offline.select.manifest import Manifest
from bon_server.offline.select.options import Compression, FormatName, Written
from bon_server.system.files import sha256_of
from tests.log.records import record, scored
from tests.offline.grouped_files import import_lines, line, worked_example
from tests.offline.select.test_select import rows, run, serve

CHAT = (Message("system", "Be brief."), Message("user", "2?"), Message("assistant", "4"), Message("user", "3?"))
PROMPT = [{"role": message.role, "content": message.content} for message in CHAT]
BEST, PAIRS, TOP = OfflineRule.BEST_PER_PROMPT, OfflineRule.PAIRS, OfflineRule.TOP_K_PER_PROMPT


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """One chat over two requests."""
    serve(
        tmp_path,
        record(
            "r",
            prompt_messages=CHAT,
            candidates=(scored(0, 0.25, text="bad"), scored(1, 0.5, text="so", token_ids=(7, 8))),
        ),
        record("s", prompt_messages=CHAT, candidates=(scored(0, 1.0, text="good", token_ids=(5, 6)),)),
    )
    return tmp_path


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("trl-sft", BEST, [{"prompt": PROMPT, "completion": answer("good")}]),
        ("trl-tokens", BEST, [{"input_ids": [1, 2, 3, 5, 6], "labels": [-100, -100, -100, 5, 6]}]),
        ("trl-dpo", PAIRS, [{"prompt": PROMPT, "chosen": answer("good"), "rejected": answer("bad")}]),
        (
            "trl-kto",
            PAIRS,
            [
                {"prompt": PROMPT, "completion": answer("good"), "label": True},
                {"prompt": PROMPT, "completion": answer("bad"), "label": False},
            ],
        ),
        ("messages", BEST, [{"messages": PROMPT + answer("good")}]),
        (
            "openai",
            BEST,
            [{"messages": [*PROMPT[:2], PROMPT[2] | {"weight": 0}, PROMPT[3], *answer("good")]}],
        ),
        (
            "openai-dpo",
            PAIRS,
            [
                {
                    "input": {"messages": PROMPT, "tools": [], "parallel_tool_calls": True},
                    "preferred_output": answer("good"),
                    "non_preferred_output": answer("bad"),
                }
            ],
        ),
        (
            "sharegpt",
            BEST,
            [
                {
                    "conversations": [
                        {"from": "system", "value": "Be brief."},
                        {"from": "human", "value": "2?"},
                        {"from": "gpt", "value": "4"},
                        {"from": "human", "value": "3?"},
                        {"from": "gpt", "value": "good"},
                    ]
                }
            ],
        ),
        (
            "grouped",
            TOP,
            [
                {
                    "prompt": PROMPT,
                    "responses": ["so", "good"],
                    "rewards": [0.5, 1.0],
                    "finish_reasons": ["stop", "stop"],
                    "weights": [1.0, 1.0],
                }
            ],
        ),
    ],
)
def test_a_format(log: Path, name: str, rule: OfflineRule, expected: list[Any]) -> None:
    manifest = run(log, rule, format=name, k=2 if rule is TOP else None)
    assert rows(log / "out") == expected
    (data, meta) = manifest["outputs"]
    assert data["rows"] == len(expected) and meta["rows"] == manifest["counts"]["selected"]
    lines = pq.read_table(log / "out" / "meta.parquet")["line"].to_pylist()
    assert lines == {"trl-kto": [0, 1], "trl-dpo": [0, 0], "openai-dpo": [0, 0], "grouped": [0, 0]}.get(name, [0])


def test_pairs_name_their_sides_and_may_come_from_two_requests(log: Path) -> None:
    run(log, PAIRS)
    meta = pq.read_table(log / "out" / "meta.parquet").to_pylist()
    assert [(row["role"], row["request_id"], row["reward"]) for row in meta] == [
        ("chosen", "s", 1.0),
        ("rejected", "r", 0.25),
    ]
    assert run(log, PAIRS, merge=False, out="apart")["counts"]["selected"] == 2
    assert rows(log / "apart")[0]["chosen"] == answer("so")


def test_parquet_has_typed_columns(log: Path) -> None:
    serve(log, record("t", (0.5,), prompt_text="Once", prompt_messages=None))
    run(log, BEST, format="parquet")
    chats, texts = (pq.read_table(log / "out" / f"part-{n:05d}.parquet").to_pylist() for n in (0, 1))
    assert chats == [{"prompt": PROMPT, "completion": answer("good"), "reward": 1.0}]
    assert texts == [{"prompt": "Once", "completion": "answer 0", "reward": 0.5}]
    run(log, PAIRS, format="parquet", out="pairs")
    assert pq.read_table(log / "pairs" / "part-00000.parquet").to_pylist() == [
        {"prompt": PROMPT, "chosen": answer("good"), "rejected": answer("bad")}
    ]
    run(log, OfflineRule.SOFT, format="parquet", weights=True, out="soft")
    weights = pq.read_table(log / "soft" / "part-00000.parquet")["weight"].to_pylist()
    assert len(weights) == 3 and sum(weights) == pytest.approx(1.0)


def test_what_a_format_cannot_hold_is_left_out_and_counted(log: Path) -> None:
    serve(
        log,
        record("t", (0.5,), prompt_text="Once", prompt_messages=None),
        record("i", (0.5,), prompt_messages=None, prompt_hash="ids"),
        record("n", candidates=(scored(0, 0.5, token_ids=()),), prompt_messages=(Message("user", "n"),)),
        record("m", (0.5,), prompt_token_ids=None, prompt_messages=(Message("user", "m"),)),
    )
    assert run(log, format="messages", out="a")["counts"]["dropped"] == {"prompt_text": 1, "prompt_tokens": 1}
    manifest = run(log, format="trl-tokens", out="b")
    assert manifest["counts"]["dropped"] == {"no_token_ids": 2}
    assert [one["prompts"] for one in manifest["outputs"][:-1]] == ["chat", "text", "tokens"]


@pytest.mark.parametrize("shard_rows", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("name", ["trl-sft", "grouped", "parquet"])
def test_shards_hold_the_lines_one_after_the_other(tmp_path: Path, name: str, shard_rows: int) -> None:
    import_lines(tmp_path, [*worked_example(), line("4", [0.6, 0.7], id="again")])

    def texts(out: str) -> list[Any]:
        files = sorted((tmp_path / out).glob("part-*"))
        if name == "parquet":
            return [row for file in files for row in pq.read_table(file).to_pylist()]
        return [row for file in files for row in rows(tmp_path / out, file.name)]

    whole = run(tmp_path, TOP, k=2, format=name, out="whole")
    manifest = run(tmp_path, TOP, k=2, format=name, out="shards", written=Written(shard_rows=shard_rows))
    assert texts("shards") == texts("whole") and manifest["counts"] == whole["counts"]
    sizes = [one["rows"] for one in manifest["outputs"][:-1]]
    assert all(size == shard_rows for size in sizes[:-1]) and 0 < sizes[-1] <= shard_rows
    meta = pq.read_table(tmp_path / "shards" / "meta.parquet")
    assert meta.num_rows == manifest["counts"]["selected"]
    assert list(dict.fromkeys(meta["file"].to_pylist())) == [one["file"] for one in manifest["outputs"][:-1]]


@pytest.mark.parametrize(
    ("compression", "suffix", "unpack"),
    [
        ("gzip", ".gz", gzip.decompress),
        ("zstd", ".zst", lambda data: pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()),
    ],
)
def test_compressed_lines_are_the_same_lines(
    log: Path, compression: Compression, suffix: str, unpack: Callable[[bytes], bytes]
) -> None:
    run(log, out="plain")
    manifest = run(log, written=Written(compression=compression))
    file = log / "out" / f"part-00000.jsonl{suffix}"
    assert unpack(file.read_bytes()) == (log / "plain" / "part-00000.jsonl").read_bytes()
    assert manifest["outputs"][0]["sha256"] == sha256_of(file)


def audit(folder: Path, out: str, **written: Any) -> dict[str, Any] | None:
    manifest: Manifest = run(folder, TOP, k=3, out=out, written=Written(**written))
    return manifest["audit"]


def test_the_audit_counts_what_a_trainer_would_cut(log: Path) -> None:
    """Prompts of 3 tokens and completions that say 60."""
    assert audit(log, "none") is None
    counted = {"counted_with": "log", "candidates": 3, "longest": 63, "unknown": 0}
    assert audit(log, "all", max_length=62) == counted | {"max_length": 62, "cut": 3}
    assert audit(log, "fits", max_length=63) == counted | {"max_length": 63, "cut": 0}
    import_lines(log, [line("imported", [0.5])], log="other", reward_model="rm")
    manifest = run(log, TOP, ("other",), k=3, out="imported", written=Written(max_length=5))
    assert manifest["audit"] is not None and manifest["audit"]["unknown"] == 1


def test_what_grouped_holds_can_be_imported_again(log: Path) -> None:
    run(log, TOP, k=3, format="grouped")
    (log / "again").mkdir()
    result = import_lines(log / "again", (log / "out" / "part-00000.jsonl").read_bytes().splitlines())
    assert (result.requests, result.scored, result.rejected) == (1, 3, 0)
    run(log / "again", TOP, k=3, format="grouped")
    again = rows(log / "again" / "out")
    assert again == rows(log / "out")
    assert json.dumps(again[0]["prompt"]) == json.dumps(PROMPT)


def test_more_text_than_one_file_can_be_made_of_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that a test can reach; Arrow's own would end in a traceback."""
    import_lines(tmp_path, [line("x" * 600, [0.1]), line("y" * 600, [0.2])])
    monkeypatch.setattr("bon_server.offline.select.fetching._MOST_BYTES", 1000)
    with pytest.raises(LogError, match=r"^2 chosen candidates have 0 MiB in text, .*--shard-rows$"):
        run(tmp_path)
    assert run(tmp_path, written=Written(shard_rows=1))["counts"]["selected"] == 2


def test_every_name_of_a_format_is_one() -> None:
    assert list(FORMATS) == list(get_args(FormatName))
