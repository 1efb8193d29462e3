"""Makes the golden segment of the present schema version, once, when the version changes.

Run as `-m tests.log.segments.make_golden`.
Files of earlier versions are kept as they are: they are what old logs look like.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bon_server.core.types import (
    Budget,
    Candidate,
    CandidateStatus,
    FinishReason,
    Kind,
    Message,
    Outcome,
    Sampling,
    SelectionReason,
    SelectionRule,
)
from bon_server.log.record import SCHEMA_VERSION, Record
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from tests.log.records import ODD_TEXT, record, scored
from tests.log.seal.test_sealing import seal

FOLDER = Path(__file__).with_name("golden")


def golden_records() -> list[Record]:
    """What the golden file of this version holds: every kind of field, set and unset."""
    created_at = datetime(2026, 11, 22, 12, 0, 0, 250, tzinfo=UTC)
    full = record(
        "full",
        candidates=(
            scored(
                0, 0.1, text=ODD_TEXT, token_ids=(1, 2), rewards={"a": 0.1, "b": -2.5}, logprob=-1.25, seed=-(1 << 63)
            ),
            Candidate(1, CandidateStatus.CANCELLED, finish_reason=FinishReason.CANCELLED, sampled_ns=5),
            Candidate(2, CandidateStatus.FAILED, error="OutOfMemory"),
        ),
        created_at=created_at,
        outcome=Outcome.PARTIAL,
        principal="ann",
        rule=SelectionRule.ARGMAX,
        selection_reason=SelectionReason.DEADLINE,
        selected_index=0,
        reward_context={"answer": "7"},
        tags={"team": "שלום"},
        budget=Budget(stop_at_reward=0.5),
        sampling=Sampling(0.8, 60, seed=7, stop=("\n",), choice=("yes", "no")),
    )
    bare = Record(
        request_id="bare",
        request_digest="e" * 64,
        kind=Kind.IMPORT,
        outcome=Outcome.OK,
        created_at=created_at,
        prompt_hash="f" * 64,
        prompt_text="",
        candidates=(),
        n=0,
    )
    chat = record("chat", (1.0,), created_at=created_at, prompt_messages=(Message("system", ""), Message("user", "hi")))
    return [replace(one, ordinal=i + 1) for i, one in enumerate([full, bare, chat])]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, closing(Spool.open(Path(folder))) as spool:
        spool.append([replace(one, ordinal=None) for one in golden_records()])
        seal(spool)
        (file,) = listed(Path(folder))
        (FOLDER / f"version_{SCHEMA_VERSION}.parquet").write_bytes((Path(folder) / file).read_bytes())
