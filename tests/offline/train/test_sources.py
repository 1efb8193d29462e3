"""What is trained on is what was selected: the manifest is read, the files are checked, all else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import ConfigError, TrainingError
from bon_server.core.selection import OfflineRule
from bon_server.offline.select.options import Compression, Written
from bon_server.offline.train.sources import open_source
from tests.offline.train.sets import make_log, select_from

ROW = {"prompt": "Once", "completion": " upon"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_log(tmp_path_factory.mktemp("logs") / "log", prompts=5)


@pytest.mark.parametrize("form", ["trl-sft", "trl-tokens", "messages", "parquet"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_every_format_and_packing_is_read(log: Path, tmp_path: Path, form: str, compression: Compression) -> None:
    written = Written(compression=compression, shard_rows=2)
    source = open_source("data", select_from(log, tmp_path / "set", form, written=written), "sft")
    rows = list(source.rows())
    assert len(source.files) == 3 and len(rows) == 5
    assert {source.ending(file, line) for file, line, _ in rows} == {"stop"}
    assert source.format == ("trl-sft" if form == "parquet" else form)


@pytest.mark.parametrize("form", ["trl-dpo", "parquet"])
def test_pairs_know_how_each_of_their_answers_ended(log: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "set"
    select_from(log, out, form, keep_truncated=True, rule=OfflineRule.PAIRS)
    source = open_source("data", out, "dpo")
    ((file, line, row), *others) = source.rows()
    assert len(others) == 4 and set(row) == {"prompt", "chosen", "rejected"}
    assert source.ending(file, line, "chosen") == "length"
    assert source.ending(file, line, "rejected") == "stop"


def test_an_unfinished_selection_is_refused(log: Path, tmp_path: Path) -> None:
    out = select_from(log, tmp_path / "set")
    (out / "manifest.json").unlink()
    with pytest.raises(TrainingError, match=r"no manifest\.json"):
        open_source("data", out, "sft")
    assert open_source("data", out / "part-00000.jsonl", "sft").format == "trl-sft", "a file is taken by itself"


@pytest.mark.parametrize("damage", ["changed", "missing", "sidecar"])
def test_files_that_are_not_the_manifests_are_refused(log: Path, tmp_path: Path, damage: str) -> None:
    out = select_from(log, tmp_path / "set")
    path = out / ("meta.parquet" if damage == "sidecar" else "part-00000.jsonl")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"it is 3", b"it is 4") + b" ")
    with pytest.raises(TrainingError, match="is missing" if damage == "missing" else "SHA-256"):
        open_source("data", out, "sft")


def test_formats_that_a_method_does_not_take_are_refused_with_those_it_takes(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds rows openai; sft takes the formats trl-sft, trl-tokens, messages"):
        open_source("data", select_from(log, tmp_path / "openai", "openai"), "sft")
    with pytest.raises(ConfigError, match="dpo takes the formats trl-dpo, parquet"):
        open_source("data", select_from(log, tmp_path / "sft"), "dpo")


def test_weighted_rows_are_refused(log: Path, tmp_path: Path) -> None:
    out = select_from(log, tmp_path / "set", rule=OfflineRule.SOFT, weights=True)
    with pytest.raises(ConfigError, match="weighted"):
        open_source("data", out, "sft")


@pytest.mark.parametrize(
    ("row", "method", "form"),
    [
        (ROW, "sft", "trl-sft"),
        ({"input_ids": [1], "labels": [1]}, "sft", "trl-tokens"),
        ({"messages": []}, "sft", "messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "dpo", "trl-dpo"),
    ],
)
def test_the_format_of_a_file_is_told_by_its_columns(
    tmp_path: Path, row: dict[str, Any], method: str, form: str
) -> None:
    lines, columns = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), columns)
    for path in (lines, columns):
        assert open_source("data", path, method).format == form


def test_what_cannot_be_read_is_named_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for second, reason in (('{"prompt": "secret"}', "no completion"), ('{"secret', "no JSON object")):
        path.write_text(f"{json.dumps(ROW)}\n{second}\n")
        with pytest.raises(TrainingError, match=f"rows.jsonl, line [12]: it (has|is) {reason}") as raised:
            list(open_source("data", path, "sft").rows())
        assert "secret" not in str(raised.value)
    for name, content, reason in (
        ("empty.jsonl", "", "no rows"),
        ("other.jsonl", '{"text": "x"}', "with the columns text"),
        ("rows.csv", "x", "files named"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises((ConfigError, TrainingError), match=reason):
            open_source("data", tmp_path / name, "sft")
    with pytest.raises(TrainingError, match="there is no such folder or file"):
        open_source("data", tmp_path / "nowhere", "sft")
