"""Requests with one thing wrong, and cases made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from bon.v1 import bon_pb2 as pb

from tests.faults.case import Case
from tests.faults.place import PROMPT, Kind, Place, Seen, see
from tests.serving.running import question

MAX_N = 16
SYNTHETIC = Kind({"limits.max_n": MAX_N}, scripted=False)
"""Shared by all bad input: that the server goes on is part of what is tested."""

Request = pb.GenerateRequest | pb.ScoreRequest | pb.RecordFeedbackRequest


def ask(**fields: Any) -> pb.GenerateRequest:
    """A good question except for these fields."""
    if not {"chat", "tokens"} & fields.keys():
        fields.setdefault("text", PROMPT)
    return question(**fields)


def sampling(**parameters: Any) -> pb.GenerateRequest:
    """A good question with these sampling parameters."""
    return ask(sampling=pb.SamplingParams(**parameters))


def choices(*texts: str) -> pb.GenerateRequest:
    """A good question with these choices."""
    return sampling(choice=pb.Choice(choices=texts))


def chat(*turns: tuple[str, str]) -> pb.GenerateRequest:
    """A good question that is this conversation."""
    return ask(chat=pb.Chat(messages=[pb.ChatMessage(role=role, content=content) for role, content in turns]))


def score(**fields: Any) -> pb.ScoreRequest:
    """A good ScoreRequest except for these fields."""
    fields.setdefault("completions", ["good"])
    if not {"chat", "tokens"} & fields.keys():
        fields.setdefault("text", PROMPT)
    return pb.ScoreRequest(**fields)


def feedback(**fields: Any) -> pb.RecordFeedbackRequest:
    """A good observation except for these fields, on a request that nobody made."""
    if not {"double_value", "string_value"} & fields.keys():
        fields.setdefault("bool_value", True)
    return pb.RecordFeedbackRequest(**{"request_id": "never asked", "name": "thumbs_up", **fields})


@dataclass(frozen=True)
class Sends:
    """Sends a request to the method that takes it, and to the stream as well, which has to say the same."""

    make: Callable[[], Request]

    async def __call__(self, place: Place) -> Seen:
        request = self.make()
        if isinstance(request, pb.ScoreRequest):
            return await see(place.stub.Score(request))
        if isinstance(request, pb.RecordFeedbackRequest):
            return await see(place.stub.RecordFeedback(request))
        seen = await see(place.stub.Generate(request))
        streamed = await see(place.stub.GenerateStream(pb.GenerateStreamRequest(request=request)))
        assert (streamed.ended, _fields(streamed)) == (seen.ended, _fields(seen))
        return seen


def _fields(seen: Seen) -> set[str]:
    """That were named; not which entries of a map, which comes in any order."""
    if seen.ended is not grpc.StatusCode.INVALID_ARGUMENT or seen.refused is None:
        return {seen.said}
    return {field.partition("[")[0] for field in seen.refused.violations}


def bad(name: str, request: Request, field: str, *says: str) -> Case:
    """INVALID_ARGUMENT: the field, the value given, what is allowed."""
    return Case(name=name, happens=Sends(lambda: request), field=field, says=says, kind=SYNTHETIC)


def unsupported(name: str, request: Request, field: str) -> Case:
    """FAILED_PRECONDITION: an option that this policy has not."""
    code = grpc.StatusCode.FAILED_PRECONDITION
    return Case(name=name, happens=Sends(lambda: request), ends=code, field=field, kind=SYNTHETIC)


def out_of_range(parameter: str, allowed: str, **values: float) -> Iterator[Case]:
    """Cases of one sampling parameter; values by what they are called."""
    for label, value in values.items():
        name = f"{parameter} {label.replace('_', ' ')}"
        yield bad(name, sampling(**{parameter: value}), f"sampling.{parameter}", str(value), allowed)
