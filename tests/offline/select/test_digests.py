"""Identities do not depend on what they are read together with."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from bon_server.core.types import ModelRef
from bon_server.log.segments.columns import to_batch
from bon_server.offline.select.eligible import Models
from bon_server.offline.select.rows import prompt_keys
from tests.log.records import record


def test_a_prompt_has_the_same_key_beside_any_other() -> None:
    """What is no SHA-256 is hashed; capitals are no SHA-256 as we write it."""
    good, other = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
    alone = prompt_keys(pa.array([good, other])).tolist()
    for odd in (None, "", "t", good.upper()):
        keys = prompt_keys(pa.array([odd, good, other])).tolist()
        assert keys[1:] == alone and keys[0] not in alone
        assert keys[0] == prompt_keys(pa.array([odd], pa.string())).tolist()[0]
    assert prompt_keys(pa.array([other, good, other])[1:]).tolist() == alone
    assert alone[0] == (int(good[:16], 16), int(good[16:32], 16))


def test_reward_models_are_told_apart_whatever_their_names() -> None:
    """An imported file may name a model with any characters; none of them joins or splits models."""
    ensemble = (ModelRef("a", "one", "1"), ModelRef("b", "two", "2"))
    odd = (ModelRef("reward", "x\x1fy\x1ez\0", ""),)
    several = [ensemble, odd, (), ensemble[::-1], ensemble, (ModelRef("a", "one", "2"), ensemble[1])]
    models = Models.in_batch(to_batch([record(f"r{i}", reward_models=refs) for i, refs in enumerate(several)]))
    expected = [tuple((ref.name, ref.id, ref.revision) for ref in refs) for refs in several]
    assert [models.refs[code] for code in models.of.tolist()] == expected
    assert len(models.refs) == 5
