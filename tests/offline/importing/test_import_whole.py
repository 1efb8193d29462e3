"""Whatever is in a file: every good line arrives once, every other one is reported, and no second run adds anything."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bon_server.offline.importing import gathering
from bon_server.offline.importing.options import IMPORT_FORMATS
from tests.offline.grouped_files import line as grouped_line
from tests.offline.importing.import_files import (
    WRITERS,
    Sample,
    import_into,
    records,
    rejections,
    samples,
    write_lines,
    write_parquet,
)

any_reward = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0]))
some_texts = st.sampled_from(["", "a", "👩‍🚀\r\n"])
some_samples = st.lists(
    st.builds(Sample, st.sampled_from(["q", "é\0", "שלום"]), some_texts, any_reward),
    max_size=20,
)


def finite(order: list[Sample]) -> Counter[Sample]:
    kept = (sample.reward if sample.reward is not None and math.isfinite(sample.reward) else None for sample in order)
    return Counter(sample._replace(reward=reward) for sample, reward in zip(order, kept, strict=True))


@pytest.mark.parametrize("file_format", WRITERS)
@settings(max_examples=12)
@given(order=some_samples, cut=st.integers(0, 20), parquet=st.booleans())
def test_every_sample_arrives_once(file_format: str, order: list[Sample], cut: int, parquet: bool) -> None:
    lines = [WRITERS[file_format](sample) for sample in order]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write = write_parquet if parquet and lines else write_lines
        whole = write(folder / "whole", lines)
        first = import_into(folder / "log", file_format, whole)
        assert (first.lines, first.imported, first.rejected) == (len(order), len(order), 0)
        assert samples(folder / "log") == finite(order)
        renamed = whole.rename(folder / "renamed")
        assert import_into(folder / "log", file_format, renamed).imported == 0
        if write is write_lines:
            parts = [write_lines(folder / "a", lines[:cut]), write_lines(folder / "b", lines[cut:])]
            again = import_into(folder / "log", file_format, *parts)
            assert (again.lines, again.imported, again.rejected) == (len(order), 0, 0)
        assert samples(folder / "log") == finite(order)


@pytest.mark.parametrize("file_format", WRITERS)
def test_what_a_part_lacked_is_added_by_the_whole(tmp_path: Path, file_format: str) -> None:
    order = [Sample(f"q{i % 2}", f"a{i}", float(i)) for i in range(9)]
    lines = [WRITERS[file_format](sample) for sample in order]
    assert import_into(tmp_path / "log", file_format, write_lines(tmp_path / "part", lines[:5])).requests == 2
    result = import_into(tmp_path / "log", file_format, write_lines(tmp_path / "whole", lines))
    assert (result.imported, result.already_there, result.requests) == (4, 5, 2)
    assert samples(tmp_path / "log") == finite(order)


def test_a_prompt_with_very_many_candidates_becomes_several_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MAX_CANDIDATES", 4)
    order = [Sample("q", f"a{i}", float(i)) for i in range(10)]
    file = write_lines(tmp_path / "f", [WRITERS["verl"](sample) for sample in order])
    assert import_into(tmp_path / "log", "verl", file).requests == 3
    assert [record.n for record in records(tmp_path / "log")] == [4, 4, 2]
    monkeypatch.setattr(gathering, "MAX_RECORD_BYTES", 1)
    assert import_into(tmp_path / "other", "verl", file).requests == 10
    assert import_into(tmp_path / "log", "verl", file).imported == 0


def good_line(file_format: str, text: str) -> dict[str, Any]:
    return grouped_line(text, [1.0]) if file_format == "grouped" else WRITERS[file_format](Sample("q", text, 1.0))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"prompt": "secret', "not JSON at character"),
    "invalid UTF-8": (b'{"prompt": "secret\xff"}', "not UTF-8 at byte"),
    "UTF-16": ('{"prompt": "secret"}'.encode("utf-16"), "not UTF-8 at byte"),
    "a key twice": (b'{"secret": 1, "secret": 2}', "a key is there twice"),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "not JSON that can be read"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not JSON that can be read"),
    "a number of 5,000 digits": (b'{"a": 1' + b"0" * 5_000 + b"}", "not JSON that can be read"),
    "no object": (b'"secret"', "not a JSON object"),
    "nothing in it": (b"{}", "missing"),
    "NUL": (b"\0", "not JSON at character"),
}


@pytest.mark.parametrize("file_format", IMPORT_FORMATS)
def test_hostile_lines_are_reported_and_the_others_arrive(
    tmp_path: Path, file_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = (json.dumps(good_line(file_format, text)).encode() for text in ("first", "last"))
    surrogate = json.dumps(good_line(file_format, "\ud800 secret")).encode()
    file = tmp_path / "hostile"
    lines = [b"\xef\xbb\xbf" + first, b"", *(line for line, _ in HOSTILE.values()), surrogate, last]
    file.write_bytes(b"\r\n".join(lines))
    report = tmp_path / "reports" / "report.jsonl"
    result = import_into(tmp_path / "log", file_format, file, rejected=report)
    assert (result.imported, result.rejected, result.rejected_file) == (2, len(HOSTILE) + 1, str(report))
    reasons = rejections(result)
    assert [number for number, _ in reasons] == list(range(3, len(HOSTILE) + 4))
    for (_, reason), expected in zip(reasons, [*(why for _, why in HOSTILE.values()), "lone surrogate"], strict=True):
        assert expected in reason and "secret" not in reason
    row = json.loads(report.read_text().splitlines()[0])
    assert row["file"] == str(file) and row["text"] == '{"prompt": "secret'
    assert report.stat().st_mode & 0o777 == 0o600
    assert "secret" not in "".join(capsys.readouterr())


def test_integers_over_64_bits(tmp_path: Path) -> None:
    line = WRITERS["verl"](Sample("q", "a", 2**70)) | {"step": 2**70, "acc": -(2**80)}
    import_into(tmp_path / "log", "verl", write_lines(tmp_path / "f", [line]))
    (record,) = records(tmp_path / "log")
    assert record.tags == {"step": str(2**70)}
    assert [(c.reward, c.rewards) for c in record.candidates] == [(float(2**70), {"acc": -float(2**80)})]


def test_parquet_with_text_that_is_not_unicode(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff secret", b"also good"]).cast(pa.string(), safe=False)
    columns = {"prompt": ["q", "q", "q"], "completion": texts, "f": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    result = import_into(tmp_path / "log", "trl-grpo", tmp_path / "f.parquet")
    assert [c.text for record in records(tmp_path / "log") for c in record.candidates] == ["good", "also good"]
    assert rejections(result) == [(2, "not a row that can be read (UnicodeDecodeError)")]
