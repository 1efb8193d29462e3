"""What is left out before choosing, and how it is counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import ConfigError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Candidate, Message
from bon_server.log.record import Record
from tests.log.records import record, scored
from tests.offline.grouped_files import import_lines, line
from tests.offline.select.test_select import completions, run, serve

BASE = record("base")


def predicate(record: Record, candidate: Candidate) -> bool:
    """Named by a test as a user would."""
    return record.request_id == "long" and candidate.text.startswith("a long")


def broken(record: Record, candidate: Candidate) -> bool:
    raise KeyError(candidate.text)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four prompts, sealed and not, that the filters below tell apart."""

    def chat(name: str) -> dict[str, Any]:
        return {"prompt_messages": (Message("user", name),)}

    long = (scored(0, 0.5, text="a long answer, ß", completion_tokens=90), scored(1, 0.9, text="", completion_tokens=1))
    serve(
        tmp_path,
        record("mine", (0.1, 0.2), principal="ann", tags={"run": "1", "arm": "x"}, **chat("mine")),
        record("tagged", (0.3, 0.3), tags={"run": "2", "arm": "x"}, **chat("tagged")),
        record("long", candidates=long, **chat("long")),
        replace(record("late", (0.7,), **chat("late")), created_at=BASE.created_at + timedelta(days=3)),
    )
    return tmp_path


@pytest.mark.parametrize(
    ("filters", "dropped", "selected"),
    [
        ({}, {}, 4),
        ({"principals": ("ann", "bob")}, {"principal": 5}, 1),
        ({"principals": ("",)}, {"principal": 2}, 3),
        ({"tags": (("arm", "x"),)}, {"tags": 3}, 2),
        ({"tags": (("arm", "x"), ("run", "2"))}, {"tags": 5}, 1),
        ({"tags": (("run", "x"),)}, {"tags": 7}, 0),
        ({"min_tokens": 60, "max_tokens": 60}, {"tokens": 2}, 3),
        ({"min_tokens": 2}, {"tokens": 1}, 4),
        ({"min_chars": 1}, {"chars": 1}, 4),
        ({"max_chars": 15}, {"chars": 1}, 4),
        ({"max_chars": 16}, {}, 4),
        ({"min_n": 2}, {"min_n": 1}, 3),
        ({"min_spread": 0.1}, {"min_spread": 3}, 2),
        ({"min_n": 2, "min_spread": 0.4}, {"min_n": 1, "min_spread": 4}, 1),
        ({"policies": ("a-policy",)}, {}, 4),
        ({"policies": ("a-policy@abcd",)}, {}, 4),
        ({"policies": ("a-policy@other", "abcd")}, {"policy": 7}, 0),
        ({"predicate": "tests.offline.select.test_select_filters:predicate"}, {"predicate": 6}, 1),
    ],
)
def test_a_filter(log: Path, filters: dict[str, Any], dropped: dict[str, int], selected: int) -> None:
    counts = run(log, **filters)["counts"]
    assert (counts["dropped"], counts["selected"]) == (dropped, selected)
    assert counts["requests"] == 4 and counts["candidates"] == 7 == counts["eligible"] + sum(dropped.values())


def test_what_is_out_of_the_time_is_not_read(log: Path) -> None:
    later = BASE.created_at + timedelta(days=1)
    assert run(log, since=later)["counts"]["requests"] == 1
    before = run(log, until=later, out="before")
    assert before["counts"]["requests"] == 3 and before["filters"]["until"] == later.isoformat()
    assert run(log, since=BASE.created_at, until=later, out="both")["counts"]["candidates"] == 6


def test_a_predicate_that_raises_says_so_without_the_text(log: Path) -> None:
    predicate = "tests.offline.select.test_select_filters:broken"
    where = r"KeyError at test_select_filters\.py:\d+, at row"
    with pytest.raises(ConfigError, match=rf"^predicate '{predicate}' raised {where}"):
        run(log, predicate=predicate)
    assert not (log / "out").exists()
    with pytest.raises(ConfigError, match="has no function 'missing'"):
        run(log, predicate="tests.offline.select.test_select_filters:missing")


@pytest.mark.parametrize(
    ("duplicates", "dropped", "left"),
    [
        ("keep", {}, ["A  b", "a b", "a b", "Ａ B", "c", "a b", "a b"]),
        ("exact", {"duplicate": 2}, ["A  b", "a b", "Ａ B", "c", "a b"]),
        ("normalised", {"duplicate": 4}, ["A  b", "c", "a b"]),
    ],
)
def test_of_equal_texts_of_a_prompt_the_first_stays(
    tmp_path: Path, duplicates: str, dropped: dict[str, int], left: list[str]
) -> None:
    """Over several requests of the prompt; of another prompt it is no duplicate."""
    lines = [
        line("p", [0.1, 0.2, 0.3]) | {"responses": ["A  b", "a b", "a b"]},
        line("p", [0.4, 0.5, 0.6]) | {"responses": ["Ａ B", "c", "a b"]},
        line("q", [0.4]) | {"responses": ["a b"]},
    ]
    import_lines(tmp_path, lines)
    manifest = run(tmp_path, OfflineRule.THRESHOLD, threshold=0.0, duplicates=duplicates)
    assert manifest["counts"]["dropped"] == dropped and completions(tmp_path / "out") == left


def test_pairs_and_spread_count_what_is_left_after_duplicates(tmp_path: Path) -> None:
    import_lines(tmp_path, [line("p", [0.1, 0.9, 0.5]) | {"responses": ["x", "X", "y"]}])
    manifest = run(tmp_path, OfflineRule.PAIRS, duplicates="normalised", min_spread=0.4)
    assert manifest["counts"]["dropped"] == {"duplicate": 1} and manifest["counts"]["selected"] == 2
