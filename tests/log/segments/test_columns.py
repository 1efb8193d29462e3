"""Records as columns: everything survives, and old and new files are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bon_server.core.errors import ConfigError
from bon_server.core.types import (
    Budget,
    Candidate,
    CandidateStatus,
    FinishReason,
    Kind,
    LogprobKind,
    Message,
    ModelRef,
    Outcome,
    PolicyRef,
    Sampling,
    SelectionReason,
    SelectionRule,
)
from bon_server.log.record import Record, StageTimes
from bon_server.log.segments.columns import (
    BUDGET,
    CANDIDATE,
    MESSAGE,
    MODEL,
    POLICY,
    SAMPLING,
    SCHEMA,
    TIMINGS,
    conform,
    from_batch,
    leaves,
    prune,
    schema_for,
    to_batch,
)
from tests.log.records import ODD_TEXT, record, scored

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(0, 2**31 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=20) | st.sampled_from([ODD_TEXT, "", "\0", "👩‍🚀", "שלום"])
TEXT_VALUES = st.dictionaries(TEXT, TEXT, max_size=3)
TOKENS = st.lists(INT32, max_size=5).map(tuple)
TIMES = st.datetimes(datetime(1600, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC))


def _optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Candidate, ...]:
    """In index order; exactly the scored ones have a reward."""
    statuses = draw(st.lists(st.sampled_from(CandidateStatus), max_size=4))
    return tuple(
        Candidate(
            index=index,
            status=status,
            text=draw(TEXT),
            token_ids=draw(TOKENS),
            logprob=draw(_optional(FINITE)),
            logprob_kind=draw(_optional(st.sampled_from(LogprobKind))),
            finish_reason=draw(_optional(st.sampled_from(FinishReason))),
            stop_reason=draw(_optional(TEXT)),
            completion_tokens=draw(INT64),
            seed=draw(_optional(INT64)),
            reward=draw(FINITE) if status is CandidateStatus.SCORED else None,
            rewards=draw(st.dictionaries(TEXT, FINITE, max_size=2)),
            error=draw(_optional(TEXT)),
            policy_revision=draw(TEXT),
            sampled_ns=draw(_optional(INT64)),
            scored_ns=draw(_optional(INT64)),
        )
        for index, status in enumerate(statuses)
    )


SAMPLINGS = st.builds(
    Sampling,
    temperature=FINITE,
    max_tokens=INT64,
    top_k=INT64,
    seed=_optional(INT64),
    stop=st.lists(TEXT, max_size=2).map(tuple),
    stop_token_ids=TOKENS,
    json_schema=_optional(TEXT),
    regex=_optional(TEXT),
    choice=_optional(st.lists(TEXT, max_size=2).map(tuple)),
)
RECORDS = st.builds(
    Record,
    request_id=TEXT,
    request_digest=TEXT,
    kind=st.sampled_from(Kind),
    outcome=st.sampled_from(Outcome),
    created_at=TIMES,
    prompt_hash=TEXT,
    candidates=candidates(),
    n=INT32,
    attempt=INT32,
    principal=TEXT,
    ordinal=INT64,
    prompt_text=_optional(TEXT),
    prompt_messages=_optional(st.lists(st.builds(Message, TEXT, TEXT), max_size=3).map(tuple)),
    prompt_token_ids=_optional(TOKENS),
    policy=_optional(st.builds(PolicyRef, TEXT, TEXT, _optional(TEXT))),
    reward_models=st.lists(st.builds(ModelRef, TEXT, TEXT, TEXT), max_size=2).map(tuple),
    sampling=_optional(SAMPLINGS),
    budget=_optional(st.builds(Budget, _optional(FINITE), _optional(FINITE), _optional(INT64))),
    rule=_optional(st.sampled_from(SelectionRule)),
    selection_reason=_optional(st.sampled_from(SelectionReason)),
    selection_seed=_optional(INT64),
    selected_index=_optional(INT32),
    reward_context=TEXT_VALUES,
    tags=TEXT_VALUES,
    timings=st.builds(StageTimes, INT64, INT64, INT64, FINITE),
    reward_model_tokens=INT64,
    error=_optional(TEXT),
    content_logged=st.booleans(),
)


def _records(batch: pa.RecordBatch) -> list[Record]:
    return [one for _, one in from_batch(batch, Record)]


@settings(max_examples=150)
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_records_survive_the_columns(records: list[Record]) -> None:
    records = [replace(one, ordinal=i) for i, one in enumerate(records)]
    batch = to_batch(records)
    assert batch.schema.equals(SCHEMA)
    assert _records(batch) == records
    assert _records(batch.slice(1)) == records[1:]
    for column in ("created_at", "request_id"):
        assert batch.column(column).null_count == 0


def test_the_columns_are_the_fields_of_the_record() -> None:
    """A field added to a type needs a column: this fails until it has one."""
    pairs: list[tuple[type[Any], Any]] = [
        (Record, SCHEMA),
        (Candidate, CANDIDATE),
        (Message, MESSAGE),
        (ModelRef, MODEL),
        (PolicyRef, POLICY),
        (Sampling, SAMPLING),
        (Budget, BUDGET),
        (StageTimes, TIMINGS),
    ]
    for kind, columns in pairs:
        assert set(kind.__annotations__) == {field.name for field in columns}, kind


def test_rows_come_back_in_ordinal_order() -> None:
    shuffled = [record(f"r{i}", ordinal=i) for i in (3, 1, 2)]
    assert [one.ordinal for one in _records(to_batch(shuffled))] == [1, 2, 3]


def test_times_are_instants() -> None:
    there = datetime(2026, 11, 22, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    (back,) = _records(to_batch([record(created_at=there, ordinal=1)]))
    assert back.created_at == there and back.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "unfit", [record(candidates=(scored(0, 1.0, seed=1 << 63),)), record(prompt_token_ids=(1 << 31,))]
)
def test_what_does_not_fit_is_refused(unfit: Record) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        to_batch([unfit])


@dataclass(frozen=True)
class _CandidatePart:
    reward: float | None = None


@dataclass(frozen=True)
class _Part:
    request_id: str
    candidates: tuple[_CandidatePart, ...]
    tags: dict[str, str]
    policy: PolicyRef | None = None
    field_of_tomorrow: int = 7


def test_a_type_with_some_fields_reads_only_their_columns() -> None:
    schema = schema_for(_Part)
    assert leaves(schema) == [
        "request_id",
        "ordinal",
        "policy.id",
        "policy.revision",
        "policy.chat_template_hash",
        "tags.list.element.key",
        "tags.list.element.value",
        "candidates.list.element.reward",
    ]
    whole = record("r", ordinal=5, tags={"a": "b"})
    assert from_batch(to_batch([whole], schema), _Part) == [
        (5, _Part("r", (_CandidatePart(0.5), _CandidatePart(0.25)), {"a": "b"}, whole.policy))
    ]


@pytest.mark.parametrize("name", ["reward", "candidates.rewrd", "tags.key", "request_id.x", ""])
def test_unknown_columns_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="column: "):
        prune([name])


def test_an_older_file_lacks_columns_and_a_newer_one_has_more() -> None:
    batch = to_batch([record("a", ordinal=1), record("b", ordinal=2, candidates=())])
    older = to_batch(
        [record("a", ordinal=1), record("b", ordinal=2, candidates=())],
        prune([field.name for field in SCHEMA if field.name not in ("content_logged", "timings", "candidates")]
              + ["candidates.index", "candidates.status", "candidates.reward"]),
    )  # fmt: skip
    (a, b) = _records(older)
    assert a.content_logged and a.timings == StageTimes() and a.candidates[1].reward == 0.25 and b.candidates == ()
    assert a.candidates[0].token_ids == ()
    filled = conform(older, SCHEMA)
    assert filled.schema.equals(SCHEMA) and filled.column("timings").null_count == 2
    assert filled.column("candidates").to_pylist()[0][1]["reward"] == 0.25
    newer = batch.append_column("of_tomorrow", pa.array([1, 2]))
    assert _records(newer) == _records(batch)


def test_a_row_that_is_no_record_is_refused() -> None:
    batch = to_batch([record(ordinal=1)])
    unknown = batch.set_column(batch.schema.get_field_index("kind"), "kind", pa.array(["unknown"]))
    with pytest.raises(msgspec.ValidationError):
        from_batch(unknown, Record)
