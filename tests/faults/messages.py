"""Messages as nobody would send them: random bytes, damaged messages, and whole ones with odd values in any field."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bon.v1 import bon_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

REQUESTS: dict[str, type[Message]] = {
    "Generate": pb.GenerateRequest,
    "GenerateStream": pb.GenerateStreamRequest,
    "Score": pb.ScoreRequest,
    "RecordFeedback": pb.RecordFeedbackRequest,
    "GetServerInfo": pb.GetServerInfoRequest,
}
METHODS = st.sampled_from(sorted(REQUESTS))

# Good ones

PARAMETERS = pb.SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=64, seed=7, stop=["\n\n"])
QUESTION = pb.GenerateRequest(
    request_id="a",
    chat=pb.Chat(messages=[pb.ChatMessage(role="system", content="Short."), pb.ChatMessage(role="user", content="Hi")]),
    n=4,
    sampling=PARAMETERS,
    selection=pb.Selection(rule=pb.SELECTION_RULE_SOFT, temperature=0.5, seed=3),
    budget=pb.Budget(price_per_candidate=0.01, min_n=2, prune_fraction=0.5, prune_after_tokens=8),
    reward_context={"answer": "42"},
    tags={"team": "blue", "run": "7"},
)
GOOD: dict[str, list[Message]] = {
    "Generate": [
        QUESTION,
        pb.GenerateRequest(
            tokens=pb.Tokens(ids=[72, 105]), sampling=pb.SamplingParams(json_schema='{"type": "object"}')
        ),
        pb.GenerateRequest(text="Hi", sampling=pb.SamplingParams(choice=pb.Choice(choices=["yes", "no"]))),
    ],
    "GenerateStream": [pb.GenerateStreamRequest(request=QUESTION)],
    "Score": [pb.ScoreRequest(request_id="b", text="Hi", completions=["Hello", ""], tags={"k": "v"})],
    "RecordFeedback": [
        pb.RecordFeedbackRequest(feedback_id="f", request_id="a", candidate_index=0, name="n", double_value=0.5),
    ],
    "GetServerInfo": [pb.GetServerInfoRequest()],
}

# Whole messages with odd values

ODD_NUMBERS = [0.0, -0.0, 1.0, 0.5, 2.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1.7e308, -1.7e308]
ODD_INTEGERS = [0, 1, 2, 3, 4, 16, 17, 128, 129, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -1, -2, -5, -(2**31), -(2**63)]
ODD_TEXTS = [
    "",
    "user",
    "assistant",
    "a",
    "a" * 129,
    "\0",
    "\u202e",
    "٣",
    "👩‍🚀",
    "{}",
    '{"$ref": "#"}',
    "[" * 2000,
    "(",
    "a" * 5000,
]
RANGES = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}
TEXTS = st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MANY = 20


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type in RANGES:
        low, high = RANGES[field.type]
        odd = st.sampled_from([value for value in ODD_INTEGERS if low <= value <= high])
        return odd | st.integers(low, high)
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXTS
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    assert field.type == FieldDescriptor.TYPE_DOUBLE, field.full_name
    return st.sampled_from(ODD_NUMBERS) | st.floats()


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Of a field without fields of its own."""
    if field.message_type is not None:
        return st.dictionaries(TEXTS, TEXTS, max_size=3) | st.just({str(index): "" for index in range(MANY)})
    one = _scalar(field)
    return st.lists(one, max_size=3) | one.map(lambda value: [value] * MANY) if field.is_repeated else one


def _leaves(descriptor: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    """Paths to all fields that have no fields of their own; maps are such."""
    for field in descriptor.fields:
        path = (*above, field.name)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            yield path, field
        else:
            yield from _leaves(field.message_type, path)


def _put(message: Any, path: tuple[str, ...], field: FieldDescriptor, value: Any) -> None:
    """Sets a field; of repeated messages on the way one is added."""
    for name in path[:-1]:
        inner = getattr(message, name)
        message = inner if isinstance(inner, Message) else inner.add()
    if field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).MergeFrom(type(message)(**{field.name: value}).__getattribute__(field.name))
    else:
        setattr(message, field.name, value)


LEAVES = {method: dict(_leaves(kind.DESCRIPTOR)) for method, kind in REQUESTS.items()}
EDITS = {
    method: st.one_of([st.tuples(st.just(path), _values(field)) for path, field in leaves.items()])
    for method, leaves in LEAVES.items()
    if leaves
}


@st.composite
def odd_messages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method and a message of its type in which one to three fields have values that nobody would give them."""
    method = draw(st.sampled_from(sorted(EDITS)))
    message = copy.deepcopy(draw(st.sampled_from([REQUESTS[method](), *GOOD[method]])))
    for path, value in draw(st.lists(EDITS[method], min_size=1, max_size=3)):
        _put(message, path, LEAVES[method][path], value)
    return method, message.SerializeToString()


# Damaged ones

Damage = Callable[[bytearray, int, int], None]


def _set(data: bytearray, place: int, value: int) -> None:
    data[place] = value


def _flip(data: bytearray, place: int, value: int) -> None:
    data[place] ^= 1 << (value % 8)


def _insert(data: bytearray, place: int, value: int) -> None:
    data[place:place] = bytes([value])


def _delete(data: bytearray, place: int, value: int) -> None:
    del data[place : place + 1 + value % 8]


def _cut(data: bytearray, place: int, value: int) -> None:
    del data[place:]


def _repeat(data: bytearray, place: int, value: int) -> None:
    data[place:place] = data[place : place + 1 + value % 32]


DAMAGES: Sequence[Damage] = (_set, _flip, _insert, _delete, _cut, _repeat)


@st.composite
def damaged_messages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method and a good message of its type after one to five accidents; sometimes of another method's type."""
    method = draw(METHODS)
    like = draw(st.sampled_from([method, method, method, *sorted(REQUESTS)]))
    data = bytearray(draw(st.sampled_from(GOOD[like])).SerializeToString())
    for damage in draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=5)):
        if data:
            damage(data, draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 255)))
    return method, bytes(data)


RANDOM_BYTES = st.tuples(METHODS, st.binary(max_size=120))
EVERYTHING = {"random bytes": RANDOM_BYTES, "damaged messages": damaged_messages(), "odd values": odd_messages()}


# What may be answered


def names_a_field(kind: type[Message], path: str) -> bool:
    """Whether a path like `sampling.stop[1]` leads to a field of this message, or of the request that it carries."""
    descriptor: Any = pb.GenerateRequest.DESCRIPTOR if kind is pb.GenerateStreamRequest else kind.DESCRIPTOR
    for step in path.split("[")[0].split("."):
        if descriptor is None:
            return False
        if step in descriptor.oneofs_by_name:
            descriptor = None
        elif step in descriptor.fields_by_name:
            descriptor = descriptor.fields_by_name[step].message_type
        else:
            return False
    return True
