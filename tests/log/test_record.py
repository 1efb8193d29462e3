"""The record: what it carries survives, what must not be logged is refused."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime

import msgspec
import pytest

from bon_server.core.types import Candidate, CandidateStatus, Message, Prompt
from bon_server.log.record import decode, encode, prompt_hash, to_json
from tests.log.records import ODD_TEXT, record, scored


def test_every_byte_survives() -> None:
    odd = record(
        candidates=(scored(0, -0.0, text=ODD_TEXT, rewards={"gold": 1.0}), Candidate(1, CandidateStatus.TOO_LONG)),
        prompt_messages=(Message("user", ODD_TEXT),),
        tags={"k": ODD_TEXT},
    )
    assert decode(encode(odd)) == odd
    assert str(decode(encode(odd)).candidates[0].reward) == "-0.0"


def test_a_line_of_json_has_the_columns_of_the_log() -> None:
    line = to_json(record(candidates=(scored(0, 0.5, text="a\nb"),)))
    assert b"\n" not in line
    row = json.loads(line)
    assert row["candidates"][0] | {"text": "a\nb", "reward": 0.5, "status": "scored"} == row["candidates"][0]
    assert row["schema_version"] == 1 and row["created_at"] == "2026-11-22T12:00:00.000250Z"


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        ((scored(0, math.nan),), "not finite"),
        ((scored(0, math.inf),), "not finite"),
        ((scored(0, 0.5, rewards={"gold": math.nan}),), "not finite"),
        ((Candidate(0, CandidateStatus.SCORED),), "exactly the scored ones"),
        ((msgspec.structs.replace(scored(0, 0.5), status=CandidateStatus.PRUNED),), "exactly the scored ones"),
        ((scored(1, 0.5), scored(0, 0.5)), "index order"),
        ((scored(0, 0.5, text="secret \ud800"),), "lone surrogate"),
        ((scored(0, 0.5, seed=1 << 70),), "64 bits"),
    ],
)
def test_what_must_not_be_logged_is_refused_without_content(candidates: tuple[Candidate, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        encode(record(candidates=candidates))
    assert "secret" not in str(refusal.value)


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        encode(record(created_at=datetime(2026, 1, 1)))


def test_fields_this_version_does_not_know_are_ignored() -> None:
    grown = msgspec.msgpack.decode(encode(record())) | {"field_of_tomorrow": [1, 2]}
    assert decode(msgspec.msgpack.encode(grown)) == record()


def test_prompt_hashes_never_change() -> None:
    """They join logs of different years: these digests are of the documented canonical JSON, written out here."""
    assert prompt_hash(Prompt(text="hi"), {}) == _sha256('{"prompt":{"text":"hi"},"reward_context":{}}')
    chat = Prompt(messages=(Message("user", "é"),))
    expected = '{"prompt":{"messages":[{"content":"é","role":"user"}]},"reward_context":{"a":"1","b":"2"}}'
    assert prompt_hash(chat, {"b": "2", "a": "1"}) == _sha256(expected)
    assert prompt_hash(Prompt(token_ids=(1, 2)), {}) == _sha256('{"prompt":{"token_ids":[1,2]},"reward_context":{}}')


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
