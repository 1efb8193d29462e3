"""Imports: everything arrives, or is reported; twice is once."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import ConfigError, LogError, LogLocked
from bon_server.core.types import CandidateStatus, FinishReason, Kind, Message, Outcome, Prompt
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record, prompt_hash
from bon_server.log.spool.spool import Spool
from bon_server.offline.importing import imported, importers, rows
from bon_server.offline.importing.options import ImportOptions, ImportResult
from tests.log.records import ODD_TEXT
from tests.offline.grouped_files import import_lines, line, worked_example


def records(folder: Path) -> list[Record]:
    with LogReader(folder / "log") as reader:
        return list(reader.records())


def rejections(result: ImportResult) -> list[tuple[int, str]]:
    assert result.rejected_file is not None
    report = [json.loads(text) for text in Path(result.rejected_file).read_text().splitlines()]
    assert len(report) == result.rejected
    return [(one["line"], one["reason"]) for one in report]


def test_a_line_becomes_a_record(tmp_path: Path) -> None:
    full = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ODD_TEXT}],
        "responses": [ODD_TEXT, "", "c", "d"],
        "rewards": [1, None, math.nan, -math.inf],
        "scores": {"gold": [0.5, 1, None, math.inf]},
        "finish_reasons": ["stop", "length", None, "stop"],
        "reward_context": {"answer": "7"},
        "tags": {"source": "test"},
        "id": "my-id",
    }
    result = import_lines(tmp_path, [full], reward_model="rm@3")
    assert (result.lines, result.imported, result.already_there, result.rejected) == (1, 1, 0, 0)
    assert result.rejected_file is None and not (tmp_path / "log" / "rejected").exists()
    (got,) = records(tmp_path)
    messages = (Message("system", "Be brief."), Message("user", ODD_TEXT))
    assert got.prompt_messages == messages and got.prompt_text is None
    assert got.prompt_hash == prompt_hash(Prompt(messages=messages), {"answer": "7"})
    assert (got.request_id, got.kind, got.outcome, got.n, got.ordinal) == ("my-id", Kind.IMPORT, Outcome.PARTIAL, 4, 1)
    assert (got.reward_context, got.tags) == ({"answer": "7"}, {"source": "test"})
    assert [model.id for model in got.reward_models] == ["rm@3"]
    assert got.selected_index is None and got.policy is None
    assert [c.text for c in got.candidates] == [ODD_TEXT, "", "c", "d"]
    assert [c.reward for c in got.candidates] == [1.0, None, None, None]
    assert [c.status for c in got.candidates] == [
        CandidateStatus.SCORED,
        CandidateStatus.UNSCORED,
        CandidateStatus.NON_FINITE,
        CandidateStatus.NON_FINITE,
    ]
    assert [c.rewards for c in got.candidates] == [{"gold": 0.5}, {"gold": 1.0}, {}, {}]
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    assert [c.finish_reason for c in got.candidates] == [stop, length, None, stop]


def test_a_plain_prompt_is_a_user_message_and_with_raw_a_text(tmp_path: Path) -> None:
    import_lines(tmp_path, [line("a", [1.0])])
    import_lines(tmp_path, [line("b", [1.0])], raw=True)
    chat, text = records(tmp_path)
    assert chat.prompt_messages == (Message("user", "prompt a"),) and chat.prompt_text is None
    assert text.prompt_text == "prompt b" and text.prompt_messages is None
    assert chat.outcome is Outcome.OK


def test_ordinals_are_line_order_and_the_source_is_named_after_the_file(tmp_path: Path) -> None:
    result = import_lines(tmp_path, worked_example())
    got = records(tmp_path)
    assert [one.ordinal for one in got] == [1, 2, 3, 4, 5]
    assert [one.candidates[0].text for one in got] == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert result.reward_model.startswith("file-sha256:")
    assert {one.reward_models[0].id for one in got} == {result.reward_model}


def test_the_same_file_twice_adds_nothing_but_doubled_lines_are_data(tmp_path: Path) -> None:
    lines = [*worked_example(), worked_example()[0], line("x", [1.0], id="x")]
    first = import_lines(tmp_path, lines)
    assert (first.imported, first.already_there) == (7, 0)
    second = import_lines(tmp_path, lines)
    assert (second.lines, second.imported, second.already_there, second.rejected) == (7, 0, 7, 0)
    grown = import_lines(tmp_path, [*lines, worked_example()[0]])
    assert (grown.imported, grown.already_there) == (1, 7)
    assert len(records(tmp_path)) == 8


def test_an_interrupted_import_is_completed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importers, "BATCH_RECORDS", 2)
    lines = [line(str(i % 3), [float(i)]) for i in range(9)] + ["not json"]
    append, calls = imported.append, iter(range(100))

    def power_cut(spool: Spool, records: Any) -> list[int | None]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return append(spool, records)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(importers, "append", power_cut)
        import_lines(tmp_path, lines)
    assert len(records(tmp_path)) == 4
    result = import_lines(tmp_path, lines)
    assert (result.imported, result.already_there, result.rejected) == (5, 4, 1)
    assert [one.candidates[0].reward for one in records(tmp_path)] == [float(i) for i in range(9)]
    assert [path.name for path in (tmp_path / "log" / "rejected").iterdir()] == [Path(result.rejected_file or "").name]


BAD_LINES: list[tuple[Any, str]] = [
    ('{"prompt": ', "not JSON at character"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "not JSON"),
    ('{"prompt": 1' + "0" * 5_000 + "}", "not JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    ('{"prompt": "a", "prompt": "b", "responses": ["c"], "rewards": [1]}', "a key is there twice"),
    ('{"prompt": "a", "responses": ["c"], "rewards": [1], "tags": {"k": "1", "k": "2"}}', "a key is there twice"),
    ({"prompt": "a"}, "responses, rewards: missing"),
    (line("a", [1.0]) | {"prompt": ""}, "prompt: empty"),
    (line("a", [1.0]) | {"prompt": []}, "prompt: empty"),
    (line("a", [1.0]) | {"prompt": 7}, "prompt: must be a string or a list of messages"),
    (line("a", [1.0]) | {"prompt": ["hi"]}, "prompt[0]: must be an object"),
    (line("a", [1.0]) | {"prompt": [{"role": "tool", "content": "x"}]}, "prompt[0].role: must be one of"),
    (line("a", [1.0]) | {"prompt": [{"role": "user", "content": "x", "name": "y"}]}, "role and content only"),
    (line("a", []), "responses: empty"),
    (line("a", [1.0, 2.0]) | {"rewards": [1.0]}, "rewards: 1 given for 2 responses"),
    (line("a", [1.0]) | {"rewards": 1.0}, "rewards: must be a list"),
    (line("a", [1.0]) | {"rewards": ["1.0"]}, "rewards[0]: must be a number or null"),
    (line("a", [1.0]) | {"rewards": [True]}, "rewards[0]: must be a number or null"),
    (line("a", [1.0]) | {"rewards": [10**400]}, "rewards[0]: too large"),
    (line("a", [1.0]) | {"responses": [None]}, "responses[0]: must be a string"),
    (line("a", [1.0], scores=[1]), "scores: must be an object of lists"),
    (line("a", [1.0], scores={"gold": [1, 2]}), "scores.gold: 2 given for 1 responses"),
    (line("a", [1.0], scores={"gold": ["1"]}), "scores.gold[0]: must be a number or null"),
    (line("a", [1.0], finish_reasons=["eos"]), "finish_reasons[0]: must be null or one of stop"),
    (line("a", [1.0], finish_reasons=["stop", "stop"]), "finish_reasons: 2 given for 1 responses"),
    (line("a", [1.0], reward_context={"answer": 7}), "reward_context: must be an object of strings"),
    (line("a", [1.0], tags=["t"]), "tags: must be an object of strings"),
    (line("a", [1.0], id=""), "id: must be a string of 1 to 256 characters"),
    (line("a", [1.0], id=7), "id: must be a string"),
    (line("a", [1.0]) | {"responses": ["\ud800"]}, "lone surrogate"),
    (line("a", [1.0]) | {"prompt": "\udc00"}, "lone surrogate"),
    (line("a", [1.0], id="\udc00"), "lone surrogate"),
]


def test_bad_lines_are_reported_with_number_and_reason_and_the_rest_is_imported(tmp_path: Path) -> None:
    lines = [line("first", [1.0]), *(bad for bad, _ in BAD_LINES), line("last", [2.0])]
    result = import_lines(tmp_path, lines)
    assert (result.imported, result.rejected) == (2, len(BAD_LINES))
    report = rejections(result)
    assert [number for number, _ in report] == list(range(2, len(BAD_LINES) + 2))
    for (_, reason), (bad, expected) in zip(report, BAD_LINES, strict=True):
        assert expected in reason, bad
    assert [one.candidates[0].text for one in records(tmp_path)] == ["first.0", "last.0"]


def test_a_rejected_line_can_be_read_in_the_report(tmp_path: Path) -> None:
    result = import_lines(tmp_path, ['{"prompt": "½'])
    assert result.rejected_file is not None
    report = Path(result.rejected_file)
    assert json.loads(report.read_text())["text"] == '{"prompt": "½'
    assert report.parent == tmp_path / "log" / "rejected" and report.stat().st_mode & 0o777 == 0o600


def test_an_id_cannot_be_given_to_two_lines(tmp_path: Path) -> None:
    result = import_lines(tmp_path, [line("a", [1.0], id="x"), line("b", [2.0], id="x")])
    assert (result.imported, result.rejected) == (1, 1)
    assert rejections(result) == [(2, "id: another line with this id is in the log")]


def test_blank_lines_byte_order_mark_and_missing_last_line_feed_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    one, two = (json.dumps(line(name, [1.0])).encode() for name in "ab")
    file.write_bytes(b"\xef\xbb\xbf" + one + b"\r\n\r\n  \n" + two)
    result = importers.import_files(ImportOptions((file,), tmp_path / "log"))
    assert (result.lines, result.imported, result.rejected) == (2, 2, 0)


def test_a_line_that_is_too_long_is_rejected_and_the_next_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 100)
    fits = line("a", [1.0])
    for padding in (line("b" * 100, [1.0]), line("b" * 1_000, [1.0])):
        result = import_lines(tmp_path, [padding, fits])
        assert rejections(result) == [(1, "longer than 100 bytes")]
    assert [one.candidates[0].text for one in records(tmp_path)] == ["a.0"]


def test_keys_that_are_not_imported_are_counted(tmp_path: Path) -> None:
    result = import_lines(tmp_path, [line("a", [1.0], extra=1), line("b", [1.0], extra=2, more=3)])
    assert result.imported == 2 and result.ignored_keys == {"extra": 2, "more": 1}


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format: 'csv' given"):
        import_lines(tmp_path, [], format="csv")
    with pytest.raises(LogError, match=r"nowhere\.jsonl"):
        importers.import_files(ImportOptions((tmp_path / "nowhere.jsonl",), tmp_path / "log"))
    with closing(Spool.open(tmp_path / "log")), pytest.raises(LogLocked, match="pid "):
        import_lines(tmp_path, worked_example())
