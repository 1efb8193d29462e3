"""Constraints are tried in a process of their own: what is wrong is said, not repeated, and nothing takes long."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import product
from string import ascii_lowercase
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bon_server.core.errors import InvalidRequest, Unavailable, UnsupportedOption
from bon_server.core.types import Sampling
from bon_server.models.vllm import grammar_gate
from bon_server.models.vllm.grammar_gate import GrammarGate
from tests.system.test_child_process import is_gone
from tests.tiny_models import byte_tokenizer
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "canary"
TRIAL_MS = 400


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gate() -> AsyncIterator[GrammarGate]:
    """One for all cases: that it goes on is part of what is tested."""
    tokenizer = long_tokenizer()
    gate = GrammarGate(tokenizer, len(tokenizer), TRIAL_MS)
    yield gate
    await gate.close()


def long_tokenizer() -> Any:
    """The byte tokenizer with all words of one to three small letters: what is slow is so because tokens are long."""
    tokenizer = byte_tokenizer()
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = model["model"]["vocab"]
    words = ("".join(letters) for length in (2, 3) for letters in product(ascii_lowercase, repeat=length))
    vocabulary |= {word: len(vocabulary) + place for place, word in enumerate(words)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(model)), eos_token=tokenizer.eos_token
    )


def constraint(form: str, value: Any) -> Sampling:
    """A schema may be given as an object."""
    if form == "json_schema" and not isinstance(value, str):
        value = json.dumps(value)
    fields: dict[str, Any] = {form: value}
    return Sampling(temperature=1.0, max_tokens=8, **fields)


def circle(*names: str) -> dict[str, Any]:
    """Definitions that refer to one another and never to anything else."""
    following = dict(zip(names, (*names[1:], names[0]), strict=True))
    return {"$ref": f"#/$defs/{names[0]}", "$defs": {a: {"$ref": f"#/$defs/{b}"} for a, b in following.items()}}


GOOD: dict[str, tuple[str, Any]] = {
    "date": ("regex", r"\d{4}-\d{2}-\d{2}"),
    "letters of any script": ("regex", r"\p{L}+é☃"),
    "nested quantifiers": ("regex", "(a+)+b"),
    "long but plain": ("regex", ".{0,1000}"),
    "whole text anchored": ("regex", "^abc$"),
    "anything": ("json_schema", {}),
    "object": ("json_schema", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    "annotations": (
        "json_schema",
        {"$schema": "http://json-schema.org/draft-07/schema#", "title": "t"},
    ),
    "tree": (
        "json_schema",
        {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}},
    ),
    "unknown keyword": ("json_schema", {SECRET: 1, "type": "string"}),
    "itself or a text": ("json_schema", {"anyOf": [{"$ref": "#"}, {"type": "string"}]}),
    "200 required": (
        "json_schema",
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}, "required": ["p0", "p99"]},
    ),
    "choices": ("choice", ("yes", "no", 'say "no"\\', "é☃\n", " ")),
    "1000 choices": ("choice", tuple(f"the answer number {i} of many" for i in range(1000))),
}
BAD: dict[str, tuple[str, Any, str]] = {
    "open group": ("regex", f"({SECRET}", "unclosed group"),
    "nothing to repeat": ("regex", f"*{SECRET}", "repetition operator missing expression"),
    "look-ahead": ("regex", f"(?={SECRET})b", "look-around"),
    "back-reference": ("regex", rf"({SECRET})\1", "backreferences are not supported"),
    "word boundary": ("regex", rf"\b{SECRET}\b", "look-around, word boundaries"),
    "no character at all": ("regex", r"[^\s\S]", "nothing can satisfy it"),
    "hostile": ("regex", "(.{0,1000}){0,1000}x", "too complex"),
    "hostile in a schema": ("json_schema", {"type": "string", "pattern": "^(.{0,1000}){0,1000}x$"}, "too complex"),
    "refers to itself": ("json_schema", {"$ref": "#"}, "nothing can satisfy it"),
    "refer to one another": ("json_schema", circle("a", "b", "c"), "nothing can satisfy it"),
    "itself and more": ("json_schema", {"allOf": [{"$ref": "#"}, {"type": "string"}]}, "circle"),
    "foreign reference": ("json_schema", {"$ref": f"http://{SECRET}.org/a"}, "local"),
    "file as reference": ("json_schema", {"$ref": "file:///etc/passwd"}, "local"),
    "reference to nothing": ("json_schema", {"$ref": f"#/$defs/{SECRET}"}, "leads nowhere"),
    "unknown type": ("json_schema", {"type": SECRET}, "none of JSON Schema's"),
    "not": ("json_schema", {"not": {"const": SECRET}}, "not available here: not"),
    "unique items": ("json_schema", {"type": "array", "uniqueItems": True}, "not available here: uniqueItems"),
    "unknown format": ("json_schema", {"type": "string", "format": SECRET}, "a format is not available"),
    "wrong value": ("json_schema", {"type": "string", "minLength": SECRET}, "a value that it cannot have"),
    "lenient": ("json_schema", {"x-guidance": {"lenient": True}, "not": {}}, "not available here: not"),
    "two types at once": ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "nothing can satisfy"),
    "combinations": (
        "json_schema",
        {"allOf": [{"anyOf": [{"type": "string", "minLength": i} for i in range(10)]} for _ in range(8)]},
        "too complex",
    ),
    "a million items": ("json_schema", {"type": "array", "items": {"type": "null"}, "maxItems": 10**6}, "too complex"),
    "can never end": (
        "json_schema",
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False},
        "too complex",
    ),
    "a text that ends at once, or goes wrong": (
        "json_schema",
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
        "too complex",
    ),
    "no object": ("json_schema", "[]", "cannot be read"),
    "no JSON": ("json_schema", f'{{"{SECRET}"', "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "value"), GOOD.values(), ids=GOOD.keys())
async def test_what_is_fine_passes(gate: GrammarGate, form: str, value: Any) -> None:
    await gate.check(constraint(form, value))


@pytest.mark.parametrize(("form", "value", "said"), BAD.values(), ids=BAD.keys())
async def test_what_is_wrong_is_named(gate: GrammarGate, form: str, value: Any, said: str) -> None:
    for _ in range(2):  # found out, then remembered
        with pytest.raises(InvalidRequest) as caught:
            await gate.check(constraint(form, value))
        (violation,) = caught.value.violations
        assert violation.field == f"sampling.{form}"
        assert said in violation.problem
        assert SECRET not in str(caught.value)


async def test_without_a_constraint_nothing_is_started() -> None:
    gate = GrammarGate(byte_tokenizer(), 259, TRIAL_MS)
    await gate.check(Sampling(temperature=1.0, max_tokens=8))
    assert gate._process is None
    await gate.close()


async def test_a_tokenizer_that_cannot_be_followed() -> None:
    with pytest.raises(UnsupportedOption, match=r"sampling\.regex"):
        await GrammarGate(None, 259, TRIAL_MS).check(constraint("regex", "a"))


async def test_processor_time_is_what_is_limited() -> None:
    """What takes tens of milliseconds is refused where one is allowed, and what takes next to none still passes."""
    gate = GrammarGate(byte_tokenizer(), 259, trial_ms=1)
    properties = {f"p{i}": {"type": "string"} for i in range(2000)}
    with pytest.raises(InvalidRequest, match="too complex"):
        await gate.check(constraint("json_schema", {"type": "object", "properties": properties}))
    gate._trial_ms = TRIAL_MS
    await gate.close()
    await gate.check(constraint("regex", "ab"))
    await gate.close()


async def test_a_killed_process_is_started_again(gate: GrammarGate) -> None:
    await gate.check(constraint("regex", "before"))
    assert gate._process is not None
    os.kill(gate._process.pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await gate.check(constraint("regex", "during"))
    await gate.check(constraint("regex", "during"))
    await gate.check(constraint("regex", "before"))


async def test_a_process_that_hangs_is_given_up(gate: GrammarGate, monkeypatch: pytest.MonkeyPatch) -> None:
    await gate.check(constraint("regex", "before"))
    assert gate._process is not None
    hanging = gate._process
    os.kill(hanging.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch, pytest.raises(Unavailable):
        patch.setattr(grammar_gate, "CLOCK_S", 0.1)
        await gate.check(constraint("regex", "while it hangs"))
    assert hanging.returncode == -signal.SIGKILL
    await gate.check(constraint("regex", "while it hangs"))


async def test_no_room_for_the_process_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    gate = GrammarGate(byte_tokenizer(), 259, TRIAL_MS)
    with monkeypatch.context() as patch, pytest.raises(Unavailable):
        patch.setattr(asyncio, "create_subprocess_exec", refuse)
        await gate.check(constraint("regex", "a"))
    await gate.check(constraint("regex", "a"))
    await gate.close()


SERVER = """
import asyncio
from bon_server.models.vllm.grammar_gate import GrammarGate
from bon_server.core.types import Sampling
from tests.tiny_models import byte_tokenizer

async def main():
    gate = GrammarGate(byte_tokenizer(), 259, 400)
    await gate.check(Sampling(temperature=1.0, max_tokens=8, regex="a"))
    print(gate._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_process_ends_with_a_server_that_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, env=environment, stdout=PIPE)
    assert server.stdout is not None
    trial = int(await server.stdout.readline())
    assert not is_gone(trial)
    server.kill()
    await server.wait()
    await until(lambda: is_gone(trial))


async def test_who_leaves_takes_nothing_along(gate: GrammarGate) -> None:
    """One of two callers with the same constraint, and the only one with another, leave while it is tried."""
    checks = [asyncio.create_task(gate.check(constraint("regex", f"left {i}+"))) for i in (1, 1, 2)]
    await asyncio.sleep(0)
    checks[0].cancel()
    checks[2].cancel()
    await checks[1]
    with suppress(asyncio.CancelledError):
        await checks[2]
    with pytest.raises(InvalidRequest):
        await gate.check(constraint("regex", "("))
    await gate.check(constraint("regex", "left 2+"))


async def test_a_flood_of_new_ones_is_refused_at_once(gate: GrammarGate) -> None:
    count = grammar_gate.MAX_WAITING + 8
    ends = await asyncio.gather(
        *(gate.check(constraint("regex", f"flood {i}")) for i in range(count)), return_exceptions=True
    )
    assert [type(end) for end in ends if end is not None] == [Unavailable] * 8
    await gate.check(constraint("regex", "afterwards"))


async def test_no_more_than_so_many_are_remembered(gate: GrammarGate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_gate, "REMEMBERED", 4)
    for i in range(8):
        await gate.check(constraint("regex", f"one of many {i}"))
    assert len(gate._trials) == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "required", "items", "anyOf", "allOf", "oneOf", "enum", "const", "$ref", "$defs",
             "minLength", "maximum", "pattern", "format", "multipleOf", "minItems", "additionalProperties", "not"]
        )
        | st.text(max_size=4),
        inner | st.sampled_from(["string", "object", "array", "integer", "#", "#/$defs/a", "date"]),
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
REGEX = st.text(st.sampled_from("ab.*+?{}[]()|^$\\d0,1-☃\n "), min_size=1, max_size=24)


@given(
    wanted=st.tuples(st.just("json_schema"), JSON.map(json.dumps) | st.text(max_size=40))
    | st.tuples(st.just("regex"), REGEX | st.text(min_size=1, max_size=24))
    | st.tuples(st.just("choice"), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6).map(tuple))
)
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
async def test_whatever_is_asked_for_passes_or_is_the_caller_s_fault(
    gate: GrammarGate, wanted: tuple[str, Any]
) -> None:
    with suppress(InvalidRequest):
        await gate.check(constraint(*wanted))
