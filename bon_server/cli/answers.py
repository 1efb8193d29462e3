"""One question on the command line: ask it, show the candidates, mark the winner."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Unpack

import bon
from bon.requests import GenerateOptions, Prompt
from bon.v1 import bon_pb2 as pb
from bon.visible import visible_json
from google.protobuf.json_format import MessageToJson
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from bon_server.system.terminal import Terminal, styled

_SHORT_CHARACTERS = 60


def ask(
    prompt: Prompt,
    *,
    target: str,
    security: bon.Security | None = None,
    timeout_s: float | None = None,
    **options: Unpack[GenerateOptions],
) -> pb.GenerateResponse:
    """The answer, with all candidates if `view="all"`. Raises grpc.RpcError; `bon.describe` makes one line of it."""
    with bon.Client(target, timeout=timeout_s, **(security or {})) as client:
        return client.generate(prompt, **options)


def ask_streamed(
    prompt: Prompt,
    *,
    target: str,
    console: Terminal,
    security: bon.Security | None = None,
    timeout_s: float | None = None,
    **options: Unpack[GenerateOptions],
) -> pb.GenerateResponse:
    """As `ask`; meanwhile shows candidates as they end: a live table, best first, or off a terminal one line each."""
    ended: list[pb.Candidate] = []
    best: int | None = None
    with (
        bon.Client(target, timeout=timeout_s, **(security or {})) as client,
        closing(client.generate_stream(prompt, **options)) as events,
        Live(console=console, transient=True, auto_refresh=False) as live,
    ):
        for event in events:
            kind = event.WhichOneof("event")
            if kind == "final":
                return event.final
            if kind == "best_so_far":
                best = event.best_so_far.index
            elif kind == "candidate":
                ended.append(event.candidate)
                if not console.is_terminal:
                    console.print(_line(event.candidate))
            if console.is_terminal:
                live.update(_table(ended, best), refresh=True)
    raise RuntimeError("the stream ended without a final answer")


def as_json(answer: pb.GenerateResponse) -> str:
    """Protobuf JSON with the proto's field names; zeros and empty lists are written out."""
    return visible_json(
        MessageToJson(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


def as_table(answer: pb.GenerateResponse, whole_texts: bool = False) -> RenderableType:
    """The candidates, best reward first, the winner marked; its whole text; a line on what it took.

    whole_texts: whether the other candidates' texts are shown in full too.
    """
    parts = [styled((answer.best.text, "bold")), styled((summary(answer), "dim"))]
    if not answer.candidates:
        return Group(*parts)
    return Group(_table(answer.candidates, answer.best.index, whole_texts), *parts)


def summary(answer: pb.GenerateResponse) -> str:
    """One line: how many were scored, tokens, seconds, overlap, whether the answer is an earlier one."""
    times = answer.timings
    parts = [
        f"{answer.n_scored} of {answer.n_requested} scored",
        f"{answer.usage.completion_tokens} tokens",
        f"{times.total_ns / 1e9:.2f} s",
        f"{times.overlap_ratio:.0%} of the scoring overlapped sampling",
        _word(pb.SelectionReason.Name(answer.selection_reason), "SELECTION_REASON_"),
    ]
    if answer.partial:
        parts.append("partial")
    if answer.replayed:
        parts.append("replayed")
    return f"{', '.join(parts)}; request {answer.request_id}"


def _table(candidates: Iterable[pb.Candidate], best: int | None, whole_texts: bool = False) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("#", "reward", "tokens"):
        table.add_column(heading, justify="right")
    table.add_column("end")
    table.add_column("text", overflow="fold")
    for candidate in sorted(candidates, key=_rank):
        is_best = candidate.index == best
        text = candidate.text if whole_texts else _short(candidate.text)
        table.add_row(
            "*" if is_best else "",
            str(candidate.index),
            _reward(candidate),
            str(candidate.completion_tokens),
            _word(pb.FinishReason.Name(candidate.finish_reason), "FINISH_REASON_"),
            styled(text),
            style="bold green" if is_best else None,
        )
    return table


def _line(candidate: pb.Candidate) -> str:
    return f"#{candidate.index} {_reward(candidate)} {_short(candidate.text)}"


def _rank(candidate: pb.Candidate) -> tuple[bool, float, int]:
    """Best reward first, lowest index among equals, the unscored last."""
    return not candidate.HasField("reward"), -candidate.reward, candidate.index


def _reward(candidate: pb.Candidate) -> str:
    """The reward, or why there is none."""
    if candidate.HasField("reward"):
        return f"{candidate.reward:.3f}"
    return _word(pb.CandidateStatus.Name(candidate.status), "CANDIDATE_STATUS_")


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _SHORT_CHARACTERS else one_line[: _SHORT_CHARACTERS - 1] + "…"


def _word(enum_name: str, prefix: str) -> str:
    return enum_name.removeprefix(prefix).lower().replace("_", " ")
