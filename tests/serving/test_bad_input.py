"""Bad input: the code and the field, nothing of the prompt, and a server that goes on as if nothing had been."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from bon.v1 import bon_pb2 as pb

from bon_server.serving.server import Server
from tests.conftest import synthetic_config
from tests.serving.running import GENERATE, Refused, Running, question, refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "canary-7c41"
PROMPT = f"{CANARY} What is {CANARY}?"
MAX_N = 16
SCHEMA, CHOICES = "sampling.json_schema", "sampling.choice.choices"
SCORE = "/bon.v1.BestOfNService/Score"
NAN, INFINITY = math.nan, math.inf


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One server for all cases: that it goes on is part of what is tested."""
    log: Path = tmp_path_factory.mktemp("bad-input") / "log"
    server = await Server.start(synthetic_config(log, **{"limits.max_n": MAX_N}))
    async with grpc.aio.insecure_channel(server.address) as channel:
        await channel.channel_ready()
        yield Running(server, channel, log)
    await server.drain(1)
    await server.stop()


def ask(**fields: Any) -> pb.GenerateRequest:
    """A good question with a canary in the prompt, except for these fields."""
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
    """A good ScoreRequest, except for these fields."""
    fields.setdefault("completions", ["good"])
    if not {"chat", "tokens"} & fields.keys():
        fields.setdefault("text", PROMPT)
    return pb.ScoreRequest(**fields)


@dataclass(frozen=True)
class Case:
    """A bad request."""

    request: pb.GenerateRequest | pb.ScoreRequest
    field: str
    """Which field the answer names."""
    given: str
    """The value, as the answer gives it back."""
    allowed: str
    """What the answer says would have been right."""


def of_range(name: str, allowed: str, **values: float) -> dict[str, Case]:
    """Cases of one sampling parameter."""
    return {
        f"{name} {label}": Case(sampling(**{name: value}), f"sampling.{name}", str(value), allowed)
        for label, value in values.items()
    }


CASES: dict[str, Case] = {
    "no prompt": Case(pb.GenerateRequest(n=1), "prompt", "none", "one of text, chat and tokens"),
    "empty text": Case(ask(text=""), "text", "empty", "at least one character"),
    "empty chat": Case(chat(), "chat.messages", "0 messages", "at least one"),
    "chat without content": Case(chat(("user", ""), ("user", "")), "chat.messages", "2 messages", "at least one"),
    "unknown role": Case(chat(("robot", PROMPT)), "chat.messages[0].role", "'robot'", "system, user, assistant"),
    "no role": Case(chat(("user", PROMPT), ("", PROMPT)), "chat.messages[1].role", "''", "system, user, assistant"),
    "endless chat": Case(chat(*[("user", PROMPT)] * 5000), "chat.messages", "5000", "4096"),
    "no token": Case(ask(tokens=pb.Tokens()), "tokens.ids", "empty", "at least one"),
    "token outside": Case(ask(tokens=pb.Tokens(ids=[1, 70_000])), "tokens.ids", "70000", "vocabulary"),
    "largest token": Case(ask(tokens=pb.Tokens(ids=[2**32 - 1])), "tokens.ids", "4294967295", "vocabulary"),
    "text too long": Case(ask(text=CANARY * 4000), "text", str(len(CANARY) * 4000), "32767"),
    "chat too long": Case(chat(("user", CANARY * 4000)), "chat", "44007", "32767"),
    "tokens too long": Case(ask(tokens=pb.Tokens(ids=[65] * 33_000)), "tokens.ids", "33000", "32768"),
    "prompt and max_tokens too long": Case(
        ask(text="x" * 30_000, sampling=pb.SamplingParams(max_tokens=3000)), "sampling.max_tokens", "3000", "2768"
    ),
    "n = 0": Case(ask(n=0), "n", "0", f"1 to {MAX_N}"),
    "n above the maximum": Case(ask(n=MAX_N + 1), "n", str(MAX_N + 1), f"1 to {MAX_N}"),
    "largest n": Case(ask(n=2**32 - 1), "n", "4294967295", f"1 to {MAX_N}"),
    "greedy and several": Case(sampling(temperature=0.0), "sampling.temperature", "0", "n = 4"),
    **of_range("temperature", "0 to 2", nan=NAN, infinite=INFINITY, negative=-0.1, high=2.0000001),
    **of_range("top_p", "above 0 to 1", zero=0.0, high=1.1, nan=NAN, negative=-1.0),
    **of_range("min_p", "0 to 1", high=1.5, nan=NAN, negative=-0.5),
    **of_range("presence_penalty", "-2 to 2", high=2.5, low=-2.5, nan=NAN),
    **of_range("frequency_penalty", "-2 to 2", high=2.5, low=-2.5, infinite=-INFINITY),
    **of_range("repetition_penalty", "0.01 to 2", zero=0.0, negative=-1.0, high=2.5, nan=NAN),
    **of_range("top_k", "-1 to 2147483647", low=-5, lowest=-(2**31)),
    **of_range("max_tokens", "1 to", zero=0),
    "huge max_tokens": Case(sampling(max_tokens=2**32 - 1), "sampling.max_tokens", "4294967295", "leaves 32736"),
    "negative seed": Case(sampling(seed=-1), "sampling.seed", "-1", "0 to"),
    "largest seed": Case(sampling(seed=2**63 - 1), "sampling.seed", str(2**63 - 1), "0 to"),
    "empty stop": Case(sampling(stop=["ok", ""]), "sampling.stop[1]", "0 characters", "1 to 256"),
    "long stop": Case(sampling(stop=[CANARY * 40]), "sampling.stop[0]", "440 characters", "1 to 256"),
    "many stops": Case(sampling(stop=["x"] * 17), "sampling.stop", "17", "16"),
    "many stop tokens": Case(sampling(stop_token_ids=[1] * 65), "sampling.stop_token_ids", "65", "64"),
    "schema that is no JSON": Case(sampling(json_schema=f'{{"type": "{CANARY}"'), SCHEMA, "not JSON", "character 22"),
    "empty schema": Case(sampling(json_schema=""), SCHEMA, "not JSON", "character 0"),
    "schema that is a list": Case(sampling(json_schema=f'["{CANARY}"]'), SCHEMA, "a JSON list", "an object"),
    "schema that is true": Case(sampling(json_schema="true"), SCHEMA, "a JSON value", "an object"),
    "schema with NaN": Case(sampling(json_schema='{"const": NaN}'), SCHEMA, "NaN", "no number of JSON's"),
    "schema with a number too long": Case(sampling(json_schema="9" * 5000), SCHEMA, "not JSON", "4300"),
    "schema with a key twice": Case(sampling(json_schema='{"a": 1, "a": 2}'), SCHEMA, "not JSON", "a key twice"),
    "deep schema": Case(sampling(json_schema='{"items":' * 40 + "{}" + "}" * 40), SCHEMA, "41 levels", "32"),
    "bottomless schema": Case(sampling(json_schema="[" * 60_000), SCHEMA, "far too deep", "32"),
    "wide schema": Case(sampling(json_schema='{"enum": [' + "0, " * 5000 + "0]}"), SCHEMA, "5003 values", "4096"),
    "long schema": Case(sampling(json_schema=f'{{"title": "{CANARY * 6000}"}}'), SCHEMA, "66013 bytes", "65536"),
    "empty regex": Case(sampling(regex=""), "sampling.regex", "0 bytes", "1 to 4096"),
    "long regex": Case(sampling(regex=CANARY * 400), "sampling.regex", "4400 bytes", "1 to 4096"),
    "regex with NUL": Case(sampling(regex=f"{CANARY}\0"), "sampling.regex", "a NUL", "not allowed"),
    "choice of nothing": Case(sampling(choice=pb.Choice()), CHOICES, "0", "at least one"),
    "empty choice": Case(choices("yes", ""), CHOICES, "an empty one", "at least one character"),
    "choice given twice": Case(choices(CANARY, "no", CANARY), CHOICES, "one is given twice", "twice"),
    "many choices": Case(choices(*map(str, range(1025))), CHOICES, "1025", "1024"),
    "long choices": Case(choices("x", CANARY * 6000), CHOICES, "66001 bytes", "65536"),
    "long id": Case(ask(request_id="x" * 4096), "request_id", "4096 characters", "1 to 128"),
    "id one too long": Case(ask(request_id="x" * 129), "request_id", "129 characters", "1 to 128"),
    "odd id": Case(ask(request_id="a b"), "request_id", "'a b'", "A-Z a-z 0-9"),
    "id with NUL": Case(ask(request_id="a\0"), "request_id", r"'a\x00'", "A-Z a-z 0-9"),
    "id with line feed": Case(ask(request_id="a\n"), "request_id", r"'a\n'", "A-Z a-z 0-9"),
    "id from right to left": Case(ask(request_id="\u202ea"), "request_id", r"'\u202ea'", "A-Z a-z 0-9"),
    "id of Arabic digits": Case(ask(request_id="٣"), "request_id", "٣", "A-Z a-z 0-9"),
    "too many tags": Case(ask(tags={str(i): "" for i in range(17)}), "tags", "17", "16"),
    "empty tag": Case(ask(tags={"": "v"}), "tags['']", "0 and", "1 to 64"),
    "long tag": Case(ask(tags={"k" * 65: "v"}), f"tags['{'k' * 24}…']", "65", "1 to 64"),
    "long tag value": Case(ask(tags={"k": CANARY * 30}), "tags['k']", "330", "0 to 256"),
    "too much context": Case(ask(reward_context={"k": CANARY * 6000}), "reward_context", "66001", "65536"),
    "too many contexts": Case(ask(reward_context={str(i): "" for i in range(17)}), "reward_context", "17", "16"),
    "unknown rule": Case(ask(selection={"rule": 9}), "selection.rule", "9", "0 to 2"),
    "negative rule": Case(ask(selection={"rule": -1}), "selection.rule", "-1", "0 to 2"),
    "temperature of argmax": Case(ask(selection={"temperature": 1.0}), "selection.temperature", "given", "SOFT"),
    "seed of argmax": Case(ask(selection={"seed": 1}), "selection.seed", "given", "SOFT"),
    "soft without temperature": Case(ask(selection={"rule": 2}), "selection.temperature", "missing", "SOFT"),
    "soft at zero": Case(ask(selection={"rule": 2, "temperature": 0.0}), "selection.temperature", "0", "above 0"),
    "soft at NaN": Case(ask(selection={"rule": 2, "temperature": NAN}), "selection.temperature", "nan", "above 0"),
    "NaN threshold": Case(ask(budget={"stop_at_reward": NAN}), "budget.stop_at_reward", "nan", "finite"),
    "infinite price": Case(
        ask(budget={"price_per_candidate": INFINITY}), "budget.price_per_candidate", "inf", "finite"
    ),
    "negative price": Case(ask(budget={"price_per_candidate": -0.1}), "budget.price_per_candidate", "-0.1", "at least"),
    "min_n without price": Case(ask(budget={"min_n": 2}), "budget.min_n", "given", "price_per_candidate"),
    "min_n of none": Case(ask(budget={"price_per_candidate": 1, "min_n": 0}), "budget.min_n", "0", "from 1 to"),
    "min_n above n": Case(ask(n=4, budget={"price_per_candidate": 1, "min_n": 5}), "budget.min_n", "5", "1 to n = 4"),
    "pruning all": Case(ask(budget={"prune_fraction": 1.0}), "budget.prune_fraction", "1.0", "between 0 and 1"),
    "pruning when": Case(ask(budget={"prune_fraction": 0.5}), "budget.prune_after_tokens", "missing", "needs both"),
    "pruning how many": Case(ask(budget={"prune_after_tokens": 8}), "budget.prune_fraction", "missing", "needs both"),
    "pruning at once": Case(
        ask(budget={"prune_fraction": 0.5, "prune_after_tokens": 0}), "budget.prune_after_tokens", "0", "at least 1"
    ),
    "unknown view": Case(ask(view=3), "view", "3", "0 to 2"),
    "unknown log policy": Case(ask(log_policy=4), "log_policy", "4", "0 to 3"),
    "score nothing": Case(score(completions=[]), "completions", "0", f"1 to {MAX_N}"),
    "score too many": Case(score(completions=["x"] * 17), "completions", "17", f"1 to {MAX_N}"),
    "score without prompt": Case(pb.ScoreRequest(completions=["x"]), "prompt", "none", "one of"),
    "score an empty prompt": Case(score(text=""), "text", "empty", "at least one character"),
    "score tokens outside": Case(score(tokens=pb.Tokens(ids=[99_999])), "tokens.ids", "99999", "vocabulary"),
    "score with an odd id": Case(score(request_id="ö"), "request_id", "'ö'", "A-Z a-z 0-9"),
    "score with long tags": Case(score(tags={"k": "v" * 257}), "tags['k']", "257", "0 to 256"),
}

UNSUPPORTED: dict[str, tuple[pb.GenerateRequest | pb.ScoreRequest, str]] = {
    "schema": (sampling(json_schema='{"type": "object"}'), "sampling.json_schema"),
    "cyclic schema": (sampling(json_schema='{"$ref": "#"}'), "sampling.json_schema"),
    "regex": (sampling(regex="[0-9]+"), "sampling.regex"),
    "exploding regex": (sampling(regex="(.{0,1000}){0,1000}x"), "sampling.regex"),
}


async def goes_on(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is left over, nothing was said, and the next good question is answered."""
    await running.at_rest()
    assert CANARY not in caplog.text
    assert CANARY not in str(await running.metrics())
    assert (await running.ask(text=PROMPT)).n_scored == 4
    assert CANARY not in caplog.text
    await running.at_rest()


async def refuse(running: Running, request: pb.GenerateRequest | pb.ScoreRequest) -> Refused:
    """How the method that takes this request refuses it."""
    if isinstance(request, pb.ScoreRequest):
        return await refusal(running.stub.Score(request, timeout=10))
    return await refusal(running.stub.Generate(request, timeout=10))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_bad_fields(running: Running, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    rows = len(running.records())
    refused = await refuse(running, case.request)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    problem = refused.violations[case.field]
    assert case.given in problem
    assert case.allowed in problem
    assert problem in refused.details
    assert CANARY not in refused.everything_said
    assert len(running.records()) == rows
    await goes_on(running, caplog)


@pytest.mark.parametrize(("request_", "option"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
async def test_options_that_this_policy_does_not_have(
    running: Running, request_: pb.GenerateRequest, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused = await refuse(running, request_)
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.details.startswith(option)
    assert CANARY not in refused.everything_said
    await goes_on(running, caplog)


async def test_the_stream_refuses_alike(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    for case in CASES.values():
        if isinstance(case.request, pb.GenerateRequest):
            stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=case.request))
            refused = await refusal(_all_of(stream))
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            assert case.field in refused.violations
            assert CANARY not in refused.everything_said
    await goes_on(running, caplog)


async def _all_of(stream: Any) -> list[pb.GenerateStreamResponse]:
    return [event async for event in stream]


async def test_all_that_is_wrong_is_said_at_once(running: Running) -> None:
    request = sampling(temperature=-1.0, top_p=0.0, max_tokens=0)
    request.n, request.request_id = 0, "ä"
    violations = (await refuse(running, request)).violations
    assert violations.keys() == {"request_id", "n", "sampling.temperature", "sampling.top_p", "sampling.max_tokens"}


WIDE = "\U0001f600"
FLOODS: dict[str, Callable[[], pb.GenerateRequest | pb.ScoreRequest]] = {
    "roles": lambda: chat(*[(WIDE * 100, "")] * 8000),
    "good roles": lambda: chat(*[("user", CANARY)] * 150_000),
    "stops": lambda: sampling(stop=[""] * 1_000_000),
    "tags": lambda: ask(tags={WIDE * 80 + str(i): "" for i in range(2000)}),
    "sixteen bad tags": lambda: ask(tags={WIDE * 80 + str(i): "" for i in range(16)}),
    "contexts": lambda: ask(reward_context={str(i): CANARY for i in range(50_000)}),
    "token ids": lambda: ask(tokens=pb.Tokens(ids=[2**32 - 1] * 800_000)),
    "score token ids": lambda: score(tokens=pb.Tokens(ids=[1] * 3_000_000)),
    "text": lambda: ask(text=CANARY * 300_000),
    "schema": lambda: sampling(json_schema='{"a":' * 700_000),
    "regex": lambda: sampling(regex=WIDE * 900_000),
    "choices": lambda: sampling(choice=pb.Choice(choices=[""] * 1_000_000)),
    "id": lambda: ask(request_id=WIDE * 900_000),
    "completions": lambda: score(completions=[""] * 1_000_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_floods_are_refused_in_few_words(
    running: Running, flood: Callable[[], pb.GenerateRequest | pb.ScoreRequest], caplog: pytest.LogCaptureFixture
) -> None:
    """Just under 4 MiB of violations: no list of them all, which would not fit a trailer and block everyone."""
    refused = await refuse(running, flood())
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.wire_bytes < 7500, "clients take 8 KiB of trailing metadata unless told otherwise"
    assert 1 <= len(refused.violations) <= 8
    await goes_on(running, caplog)


# Bytes

GOOD = ask(tags={"k": "v"}).SerializeToString()
BAD_BYTES: dict[str, bytes] = {
    "truncated": GOOD[:-1],
    "cut in the middle": GOOD[: len(GOOD) // 2],
    "not a message": b"\xff" * 32,
    "a group that never ends": b"\x0b" * 100,
    "a length beyond the end": b"\x12\xff\xff\xff\xff\x0f" + CANARY.encode(),
    "invalid UTF-8": b"\x12\x04\xff\xfe\xfd\xfc",
    "half a surrogate pair": b"\x12\x03\xed\xa0\x80",
    "field number 0": b"\x02\x01x",
    "deep nesting": b"\x1b" * 3000,
    "JSON": b'{"text": "' + CANARY.encode() + b'"}',
}


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES.keys())
@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "Score", "RecordFeedback", "GetServerInfo"])
async def test_malformed_bytes(running: Running, data: bytes, method: str, caplog: pytest.LogCaptureFixture) -> None:
    try:
        getattr(pb, f"{method}Request").FromString(data)
    except Exception:  # noqa: BLE001 -- the parser's own word for it
        refused = await refused_bytes(running, method, data)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"bon.v1.{method}Request" in refused.violations["message"]
        assert CANARY not in refused.everything_said
        await goes_on(running, caplog)


async def refused_bytes(running: Running, method: str, data: bytes) -> Refused:
    """How the method refuses these bytes."""
    path = f"/bon.v1.BestOfNService/{method}"
    if method == "GenerateStream":
        call: Any = running.channel.unary_stream(path)
        return await refusal(_all_of(call(data)))
    return await running.refused_bytes(path, data)


async def test_random_bytes(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Random and randomly damaged messages: an answer or a client error, never anything else."""
    dice = random.Random(11)
    call: Any = running.channel.unary_unary(GENERATE)
    codes = set()
    for _ in range(300):
        data = bytearray(dice.choice([GOOD, dice.randbytes(dice.randrange(1, 60))]))
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            await call(bytes(data), timeout=10)
            codes.add(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
    expected = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS}
    assert codes <= expected | {grpc.StatusCode.OK}
    await goes_on(running, caplog)


async def test_the_wrong_message_type(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    stream_request = pb.GenerateStreamRequest(request=ask()).SerializeToString()
    refused = await running.refused_bytes(GENERATE, stream_request)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    refused = await running.refused_bytes(SCORE, pb.GenerateResponse(request_id="a", n_scored=1).SerializeToString())
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    await goes_on(running, caplog)


async def test_unknown_fields_are_ignored(running: Running) -> None:
    newer = ask().SerializeToString() + bytes([0xFA, 0x07, 3]) + b"abc" + struct.pack("<BBd", 0xF9, 0x07, 1.0)
    call: Any = running.channel.unary_unary(GENERATE)
    assert pb.GenerateResponse.FromString(await call(newer)).n_scored == 4


async def test_an_unknown_method(running: Running) -> None:
    refused = await running.refused_bytes("/bon.v1.BestOfNService/Generat", b"")
    assert refused.code is grpc.StatusCode.UNIMPLEMENTED


# Transport


async def test_a_message_over_the_limit(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    refused = await refuse(running, ask(text=CANARY * 400_000))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert CANARY not in refused.everything_said
    await goes_on(running, caplog)


async def test_a_compressed_bomb(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    bomb = ask(text="x" * (32 << 20)).SerializeToString()
    refused = await running.refused_bytes(GENERATE, bomb, compression=grpc.Compression.Gzip)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await goes_on(running, caplog)


async def test_an_honest_compressed_message(running: Running) -> None:
    answer = await running.stub.Generate(ask(), compression=grpc.Compression.Gzip)
    assert answer.n_scored == 4


async def test_metadata_over_the_limit(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    metadata = (("large", CANARY * 2000),)
    refused = await refusal(running.stub.Generate(ask(), metadata=metadata))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await goes_on(running, caplog)


async def test_metadata_of_all_kinds_is_ignored(running: Running) -> None:
    metadata = (("x-anything", "ok"), ("x-binary-bin", b"\0\xff" * 100), ("authorization", "Bearer nonsense"))
    assert (await running.stub.Generate(ask(), metadata=metadata)).n_scored == 4
