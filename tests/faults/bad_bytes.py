"""Bad input: floods, and bytes that are no message of the method."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from bon.v1 import bon_pb2 as pb
from google.protobuf.message import DecodeError

from tests.faults.case import OK, Case, Check
from tests.faults.place import CANARY, Place, Seen, see
from tests.faults.sending import SYNTHETIC, Request, Sends, ask, chat, sampling, score

SERVICE = "/bon.v1.BestOfNService/"
METHODS = ("Generate", "GenerateStream", "Score", "RecordFeedback", "GetServerInfo")
WIDE = "\U0001f600"

FLOODS: dict[str, tuple[str, Callable[[], Request]]] = {
    "roles": ("chat.messages", lambda: chat(*[(WIDE * 100, "")] * 8000)),
    "messages": ("chat.messages", lambda: chat(*[("user", CANARY)] * 150_000)),
    "stop strings": ("sampling.stop", lambda: sampling(stop=[""] * 1_000_000)),
    "tags": ("tags", lambda: ask(tags={WIDE * 80 + str(i): "" for i in range(2000)})),
    "sixteen bad tags": (f"tags['{WIDE * 24}…']", lambda: ask(tags={WIDE * 80 + str(i): "" for i in range(16)})),
    "reward contexts": ("reward_context", lambda: ask(reward_context={str(i): CANARY for i in range(50_000)})),
    "token ids": ("tokens.ids", lambda: ask(tokens=pb.Tokens(ids=[2**32 - 1] * 800_000))),
    "token ids to score": ("tokens.ids", lambda: score(tokens=pb.Tokens(ids=[1] * 3_000_000))),
    "text": ("text", lambda: ask(text=CANARY * 300_000)),
    "JSON schema": ("sampling.json_schema", lambda: sampling(json_schema='{"a":' * 700_000)),
    "regex": ("sampling.regex", lambda: sampling(regex=WIDE * 900_000)),
    "choices": ("sampling.choice.choices", lambda: sampling(choice=pb.Choice(choices=[""] * 1_000_000))),
    "request_id": ("request_id", lambda: ask(request_id=WIDE * 900_000)),
    "completions": ("completions", lambda: score(completions=[""] * 1_000_000)),
}
"""Just under 4 MiB. No list of all that is wrong: it would not fit a trailer, and making it would block everyone."""


def _few_words(place: Place, seen: Seen) -> None:
    assert seen.refused is not None
    assert seen.refused.wire_bytes < 7500, "clients take 8 KiB of trailing metadata unless told otherwise"
    assert 1 <= len(seen.refused.violations) <= 8


def _floods() -> Iterator[Case]:
    for name, (field, make) in FLOODS.items():
        checks = (Check("in less than 8 KiB", _few_words),)
        yield Case(name="a flood", variant=name, happens=Sends(make), field=field, checks=checks, kind=SYNTHETIC)


GOOD = ask(tags={"k": "v"}).SerializeToString()
MALFORMED: dict[str, bytes] = {
    "truncated protobuf": GOOD[:-1],
    "protobuf cut in the middle": GOOD[: len(GOOD) // 2],
    "random bytes": b"\xff" * 32,
    "a group that never ends": b"\x0b" * 100,
    "a length beyond the end": b"\x12\xff\xff\xff\xff\x0f" + CANARY.encode(),
    "invalid UTF-8": b"\x12\x04\xff\xfe\xfd\xfc",
    "half a surrogate pair": b"\x12\x03\xed\xa0\x80",
    "field number 0": b"\x02\x01x",
    "deep nesting of bytes": b"\x1b" * 3000,
    "JSON": b'{"text": "' + CANARY.encode() + b'"}',
}


@dataclass(frozen=True)
class SendsBytes:
    """What no stub would send."""

    method: str
    data: bytes

    async def __call__(self, place: Place) -> Seen:
        streams = self.method == "GenerateStream"
        call: Any = (place.channel.unary_stream if streams else place.channel.unary_unary)(SERVICE + self.method)
        return await see(call(self.data))


def _malformed() -> Iterator[Case]:
    for name, data in MALFORMED.items():
        for method in METHODS:
            if _is_malformed(method, data):
                says = (f"bon.v1.{method}Request", f"{len(data)} bytes")
                sends = SendsBytes(method, data)
                yield Case(name=name, variant=method, happens=sends, field="message", says=says, kind=SYNTHETIC)


def _is_malformed(method: str, data: bytes) -> bool:
    """To this method; to others the same bytes may be a message with unknown fields."""
    try:
        getattr(pb, f"{method}Request").FromString(data)
    except DecodeError:
        return True
    return False


def _of_another(name: str, method: str, message: bytes, field: str) -> Case:
    return Case(
        name="wrong message type", variant=name, happens=SendsBytes(method, message), field=field, kind=SYNTHETIC
    )


STREAM_REQUEST = pb.GenerateStreamRequest(request=ask(text="question")).SerializeToString()
RESPONSE = pb.GenerateResponse(request_id="a", n_scored=1).SerializeToString()
NEWER = GOOD + bytes([0xFA, 0x07, 3]) + b"abc" + struct.pack("<BBd", 0xF9, 0x07, 1.0)


def _answered(place: Place, seen: Seen) -> None:
    assert pb.GenerateResponse.FromString(seen.answer).n_scored == 4


CASES = [
    *_floods(),
    *_malformed(),
    _of_another("a GenerateStreamRequest to Generate", "Generate", STREAM_REQUEST, "request_id"),
    _of_another("a GenerateResponse to Score", "Score", RESPONSE, "prompt"),
    Case(
        name="unknown fields",
        happens=SendsBytes("Generate", NEWER),
        ends=OK,
        checks=(Check("they are ignored", _answered),),
        kind=SYNTHETIC,
    ),
    Case(
        name="unknown method",
        happens=SendsBytes("Generat", b""),
        ends=grpc.StatusCode.UNIMPLEMENTED,
        kind=SYNTHETIC,
    ),
]
