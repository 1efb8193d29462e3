"""What `bon ask` shows."""

from __future__ import annotations

import asyncio
import io
import json

from bon.v1 import bon_pb2 as pb

from bon_server.cli.answers import as_json, as_table, ask, ask_streamed
from bon_server.system.terminal import Terminal
from tests.client.fake_server import FakeService


def _answer() -> pb.GenerateResponse:
    scored = pb.CANDIDATE_STATUS_SCORED
    candidates = [
        pb.Candidate(index=0, text="first [red] " + "x" * 90, reward=-1.0, status=scored),
        pb.Candidate(index=1, text="second\nline", reward=2.0, status=scored, finish_reason=pb.FINISH_REASON_LENGTH),
        pb.Candidate(index=2, text="third", status=pb.CANDIDATE_STATUS_NON_FINITE),
        pb.Candidate(index=3, text="fourth", reward=2.0, status=scored, completion_tokens=7),
    ]
    timings = pb.Timings(total_ns=1_500_000_000, overlap_ratio=0.5)
    return pb.GenerateResponse(
        request_id="r1",
        best=candidates[1],
        candidates=candidates,
        n_requested=4,
        n_scored=3,
        timings=timings,
        partial=True,
    )


def _shown(answer: pb.GenerateResponse, whole_texts: bool = False) -> list[str]:
    console = Terminal(file=io.StringIO(), width=200)
    console.print(as_table(answer, whole_texts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table_is_sorted_and_the_winner_marked() -> None:
    lines = _shown(_answer())
    rows = [line.split() for line in lines[1:5]]
    assert rows[0][:4] == ["*", "1", "2.000", "0"]
    assert [row[0] for row in rows[1:]] == ["3", "0", "2"]
    assert "length" in rows[0]
    assert rows[3][1:3] == ["non", "finite"]
    assert "first [red] xxx" in lines[3]
    assert "…" in lines[3]
    assert lines[5:7] == ["second", "line"]
    assert "3 of 4 scored" in lines[-1]
    assert "1.50 s" in lines[-1]
    assert "partial" in lines[-1]


def test_whole_texts() -> None:
    assert any("x" * 90 in line for line in _shown(_answer(), whole_texts=True))


def test_winner_alone() -> None:
    answer = _answer()
    del answer.candidates[:]
    assert _shown(answer)[:2] == ["second", "line"]


def test_json_is_protobuf_json_with_the_proto_s_names() -> None:
    document = json.loads(as_json(_answer()))
    assert document["n_scored"] == 3
    assert document["candidates"][0]["index"] == 0
    assert document["replayed"] is False
    assert "reward" not in document["candidates"][2]


async def test_ask(service: FakeService, target: str) -> None:
    answer = await asyncio.to_thread(ask, "hello", target=target, n=5, view="all", timeout_s=5.0)
    assert len(answer.candidates) == 5


async def test_streamed_shows_each_candidate_before_the_answer(service: FakeService, target: str) -> None:
    """Off a terminal each is a line of its own, so that a pipe sees them come."""
    console = Terminal(file=io.StringIO(), width=200)
    answer = await asyncio.to_thread(ask_streamed, "hello", target=target, console=console, n=3, view="all")
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ["#0", "#1", "#2"]
    assert [candidate.text in line for candidate, line in zip(answer.candidates, lines, strict=True)] == [True] * 3


async def test_streamed_on_a_terminal_is_a_table_that_is_gone_at_the_end(service: FakeService, target: str) -> None:
    console = Terminal(file=io.StringIO(), width=200, force_terminal=True)
    await asyncio.to_thread(ask_streamed, "hello", target=target, console=console, n=3, view="all")
    assert isinstance(console.file, io.StringIO)
    assert "reward" in console.file.getvalue()
