"""Lines to requests: what a line may say, and which id it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import pytest
from bon.requests import GenerateOptions
from bon.v1 import bon_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from bon_server.loop.harvest.lines import BadPromptLine, Occurrences, Run, line_request

RUN = Run(GenerateOptions(n=2, temperature=0.5))


@pytest.fixture
def occurrences() -> Iterator[Occurrences]:
    """Fresh counts."""
    with closing(Occurrences()) as counts:
        yield counts


def _request(fields: object, run: Run = RUN, occurrences: Occurrences | None = None) -> pb.GenerateRequest:
    with closing(occurrences or Occurrences()) as counts:
        return line_request(json.dumps(fields).encode(), run, counts)


def test_a_line_becomes_a_request() -> None:
    request = _request({"prompt": "hello", "reward_context": {"answer": "4"}, "tags": {"a": "b"}, "id": "x:1"})
    assert request == pb.GenerateRequest(
        request_id="x:1",
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")]),
        n=2,
        sampling=pb.SamplingParams(temperature=0.5),
        reward_context={"answer": "4"},
        tags={"a": "b"},
    )


def test_messages_and_raw() -> None:
    messages = [{"role": "user", "content": "hello"}]
    assert _request({"prompt": messages}).chat.messages[0].content == "hello"
    assert _request({"prompt": "hello"}, Run(RUN.options, raw=True)).text == "hello"
    assert _request({"prompt": messages}, Run(RUN.options, raw=True)).WhichOneof("prompt") == "chat"


def test_same_line_same_id_however_it_is_spelled(occurrences: Occurrences) -> None:
    spelled = line_request(b'{"tags": {"a": "b"}, "prompt": "h\\u00e9"}\r\n', RUN, occurrences)
    assert spelled.request_id == _request({"prompt": "hé", "tags": {"a": "b"}}).request_id


def test_equal_lines_get_ids_of_their_own_in_order(occurrences: Occurrences) -> None:
    line = b'{"prompt": "again"}'
    ids = [line_request(line, RUN, occurrences).request_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert ids[0] == _request({"prompt": "again"}).request_id


@pytest.mark.parametrize(
    "other",
    [
        Run(GenerateOptions(n=3, temperature=0.5)),
        Run(GenerateOptions(n=2, temperature=0.6)),
        Run(GenerateOptions(n=2)),
        Run(RUN.options, raw=True),
    ],
)
def test_another_run_asks_anew(other: Run) -> None:
    assert _request({"prompt": "hello"}).request_id != _request({"prompt": "hello"}, other).request_id


def test_unset_options_do_not_change_the_id() -> None:
    unset = Run(GenerateOptions(n=2, temperature=0.5, top_p=None))
    assert _request({"prompt": "hello"}).request_id == _request({"prompt": "hello"}, unset).request_id


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), st.sampled_from(["a", "b", "c", "d"]))
def test_ids_are_unique_and_survive_appended_lines(prompts: list[str], appended: str) -> None:
    def ids(all_prompts: list[str]) -> list[str]:
        with closing(Occurrences()) as counts:
            return [line_request(json.dumps({"prompt": p}).encode(), RUN, counts).request_id for p in all_prompts]

    before, after = ids(prompts), ids([*prompts, appended])
    assert after[:-1] == before
    assert len(set(after)) == len(after)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xfd", "not"),
        (b'{"prompt": "secret \xe9"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "number too long"),
        (b'"secret"', "an object with a prompt, given a string"),
        (b"{}", "prompt: .*, given nothing"),
        (b'{"prompt": 3}', "prompt: .*, given a number"),
        (b'{"prompt": [{"role": "user"}]}', "prompt: .*, given a list"),
        (b'{"prompt": [{"role": "user", "content": null}]}', "prompt:"),
        (b'{"prompt": "secret", "id": "a b"}', "id: .*, given a string"),
        (b'{"prompt": "secret", "id": 7}', "id: .*, given a number"),
        (b'{"prompt": "secret", "tags": {"a": 1}}', "tags: an object of strings"),
        (b'{"prompt": "secret", "reward_context": []}', "reward_context: .*, given a list"),
        (b'{"prompt": "secret \\ud800"}', "not Unicode"),
    ],
)
def test_bad_lines_say_what_is_wrong_and_nothing_of_their_content(
    line: bytes, words: str, occurrences: Occurrences
) -> None:
    with pytest.raises(BadPromptLine, match=words) as caught:
        line_request(line, RUN, occurrences)
    assert "secret" not in str(caught.value)
