"""Prompts from Parquet, from shards, and from what `datasets` saved: the same requests as from JSON lines."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bon.requests import GenerateOptions
from bon.v1 import bon_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from bon_server.core.errors import ConfigError
from bon_server.loop.harvest.lines import Occurrences, Run, line_request
from bon_server.loop.harvest.prompts import BadPromptLine, Columns, find_prompts, parse_columns
from tests.client.fake_server import FakeService

ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": "a"}], "reward_context": {"answer": "1"}, "tags": {"x": "y"}, "score": 1.5},
    {"prompt": [{"role": "user", "content": "b"}], "reward_context": None, "tags": {"z": "y"}, "score": None},
    {"prompt": [{"role": "user", "content": "a"}], "reward_context": {"answer": "1"}, "tags": {"x": "y"}, "score": 2.5},
    {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "é"}], "tags": None},
]


def _requests(path: Path, columns: Columns | None = None, **run: Any) -> list[pb.GenerateRequest]:
    asked = Run(GenerateOptions(n=2), columns=columns or Columns(), **run)
    with closing(Occurrences()) as occurrences:
        return [line_request(line.content, asked, occurrences) for line in find_prompts(path).lines(asked.columns)]


def _in_all_forms(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """The same rows as JSON lines, Parquet, shards, and a saved data set of several files."""
    lines, file, shards, saved = (folder / name for name in ("rows.jsonl", "rows.any", "shards", "saved"))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pa.Table.from_pylist(_filled(rows))
    pq.write_table(table, file, row_group_size=2)
    shards.mkdir()
    half = len(rows) // 2
    pq.write_table(table.slice(0, half), shards / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(half), shards / "train-00001-of-00002.parquet")
    datasets.Dataset(table).save_to_disk(saved, num_shards=min(2, len(rows)))
    return [lines, file, shards, saved]


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row.get(name) for name in {key: None for one in rows for key in one}} for row in rows]


def test_a_row_has_one_id_in_every_form(tmp_path: Path) -> None:
    of_lines, *others = map(_requests, _in_all_forms(tmp_path, ROWS))
    assert len({request.request_id for request in of_lines}) == len(ROWS)
    assert [dict(request.tags) for request in of_lines] == [{"x": "y"}, {"z": "y"}, {"x": "y"}, {}]
    assert [request.reward_context.get("answer") for request in of_lines] == ["1", None, "1", None]
    for other in others:
        assert other == of_lines


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=3), st.none() | st.text(max_size=2)), min_size=1, max_size=8))
def test_any_text_has_one_id_in_every_form(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None]]
) -> None:
    given = [{"prompt": prompt, "reward_context": {"answer": answer, "always": "x"}} for prompt, answer in rows]
    forms = _in_all_forms(tmp_path_factory.mktemp("rows"), given)
    of_lines, *others = map(_requests, forms)
    assert all(other == of_lines for other in others)


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "extra": {"gold": 4, "source": "web"}, "index": 7, "tags": ["one", "two"]},
        {"question": "b", "extra": {"gold": 5, "source": None}, "index": 8, "tags": []},
    ]
    columns = parse_columns(["prompt=question", "reward_context.answer=extra.gold", "id=index", "tags="])
    for path in _in_all_forms(tmp_path, rows):
        first, second = _requests(path, columns)
        assert (first.request_id, first.chat.messages[0].content) == ("7", "a")
        assert (dict(second.reward_context), dict(second.tags)) == ({"answer": "5"}, {})


def test_mapped_and_named_rows_have_the_same_id(tmp_path: Path) -> None:
    named, mapped = tmp_path / "named.jsonl", tmp_path / "mapped.jsonl"
    named.write_text(json.dumps({"prompt": "a", "reward_context": {"answer": "4"}, "other": 1}))
    mapped.write_text(json.dumps({"question": "a", "gold": 4}))
    columns = parse_columns(["prompt=question", "reward_context.answer=gold"])
    assert _requests(mapped, columns) == _requests(named)


def test_a_label_joins_the_others(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "tags": {"x": "y"}, "level": "hard", "a.b": "dotted"}))
    (request,) = _requests(file, parse_columns(["tags.level=level", "tags.dotted=a.b"]))
    assert dict(request.tags) == {"x": "y", "level": "hard", "dotted": "dotted"}


def test_nothing_in_a_named_column_is_a_bad_line(tmp_path: Path) -> None:
    rows = [{"prompt": "secret", "gold": None}]
    columns = parse_columns(["reward_context.answer=gold"])
    for path in _in_all_forms(tmp_path, rows):
        with pytest.raises(BadPromptLine, match="gold: there is nothing") as caught:
            _requests(path, columns)
        assert "secret" not in str(caught.value)


def test_only_needed_columns_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "picture": [b"\xff" * 100]}), file)
    ((line),) = find_prompts(file).lines(Columns())
    assert line.content == {"prompt": "a"}
    assert line.size_bytes == pytest.approx(file.stat().st_size)


def test_a_row_that_is_not_utf_8_is_a_bad_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    broken = pa.array([b"fine", b"\xff\xfe", b"too"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), file)
    contents = [line.content for line in find_prompts(file).lines(Columns())]
    assert contents[0] == {"prompt": "fine"}
    assert isinstance(contents[1], BadPromptLine)
    assert contents[2] == {"prompt": "too"}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["question"], "expected PART=COLUMN"),
        (["answer=gold"], "expected PART=COLUMN"),
        (["tags.=gold"], "expected PART=COLUMN"),
        (["prompt="], "only id, reward_context and tags"),
        (["id=a", "id=b"], "already given as 'a'"),
    ],
)
def test_wrong_columns_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_columns(texts)


def test_a_table_without_the_column_is_refused_naming_what_it_has(tmp_path: Path) -> None:
    _, file, shards, saved = _in_all_forms(tmp_path, [{"question": "a", "answer": "b"}, {"question": "c"}])
    for path in (file, shards, saved):
        with pytest.raises(ConfigError, match=r"no column 'prompt'; it has answer, question"):
            _requests(path)
        with pytest.raises(ConfigError, match="no column 'gold'"):
            _requests(path, parse_columns(["prompt=question", "reward_context.answer=gold"]))


def test_folders_that_are_no_single_table_are_refused(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"prompt": ["a"]})
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "dict")
    with pytest.raises(ConfigError, match=r"several splits; name one of .*dict/test, .*dict/train"):
        find_prompts(tmp_path / "dict")
    for split in ("train", "test"):
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ConfigError, match="several tables: test, train"):
        find_prompts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"without \*.parquet files"):
        find_prompts(tmp_path / "empty")


def test_damage_is_named(tmp_path: Path) -> None:
    _, file, _, saved = _in_all_forms(tmp_path, ROWS)
    file.write_bytes(file.read_bytes()[:-20])
    (saved / "data-00000-of-00002.arrow").write_bytes(b"nothing of the kind")
    for path in (file, saved):
        with pytest.raises(ConfigError, match="can be read"):
            list(find_prompts(path).lines(Columns()))


def test_a_system_prompt_goes_first_and_changes_the_id(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "a"}]}\n')
    told = _requests(file, system="Be brief.")
    for request in told:
        assert [(message.role, message.content) for message in request.chat.messages] == [
            ("system", "Be brief."),
            ("user", "a"),
        ]
    plain = _requests(file)
    assert len({request.request_id for request in (*told, *plain)}) == 4


def test_a_second_system_message_is_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[3]))
    with pytest.raises(BadPromptLine, match="system message of its own"):
        _requests(file, system="Be brief.")


def test_tags_of_the_run_join_those_of_the_line(tmp_path: Path) -> None:
    run = Run(GenerateOptions(n=2, tags={"run": "1", "x": "run"}))
    with closing(Occurrences()) as occurrences:
        tagged = line_request(b'{"prompt": "a", "tags": {"x": "line"}}', run, occurrences)
    assert dict(tagged.tags) == {"run": "1", "x": "line"}


async def test_a_saved_data_set_is_harvested(service: FakeService, target: str, tmp_path: Path) -> None:
    import bon

    from bon_server.loop.harvest.loop import harvest

    *_, saved = _in_all_forms(tmp_path, ROWS)
    async with bon.AsyncClient(target, attempts=1) as client:
        run = Run(GenerateOptions(n=3))
        result = await harvest(find_prompts(saved).lines(run.columns), client, run, concurrency=2, patience_s=5.0)
    assert (result.requests, result.failed, len(service.answers)) == (4, 0, 4)
