"""What a caller may do, how often it does so, and how that may end."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import bon
import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.loop.soak.ledger import Ledger

Answer = TypeVar("Answer")
Options = dict[str, Any]
"""Of `AsyncClient.generate`, with `prompt`."""

REMEMBERED = 500
"""Requests of a caller that it may come back to."""
LONG_DEADLINE_S = 120.0
REFUSED_S = 0.2
"""Pause of a caller that a full server has refused."""
LEAVES_AFTER_S = 0.25
"""Longest patience of those who cancel."""
TOO_BIG_CHARS = 5_000_000
BUDGETS: tuple[Options, ...] = (
    {"stop_at_reward": 0.5},
    {"stop_at_reward": 0.8, "price_per_candidate": 0.0},
    {"price_per_candidate": 0.05, "min_n": 2},
    {"prune_fraction": 0.5, "prune_after_tokens": 8},
)
BAD: tuple[Options, ...] = (
    {"n": 0},
    {"n": 2**32 - 1},
    {"prompt": ""},
    {"prompt": [{"role": "nobody", "content": "x"}]},
    {"request_id": "not an id"},
    {"request_id": "x" * 4096},
    {"temperature": math.nan},
    {"temperature": -0.1},
    {"top_p": 0.0},
    {"top_k": -5},
    {"max_tokens": 0},
    {"stop": [""]},
    {"selection_temperature": 1.0},
    {"min_n": 1},
    {"tags": {f"tag{i}": "x" for i in range(17)}},
)


class Caller:
    """One of many, with a memory of what it asked."""

    def __init__(self, client: bon.AsyncClient, dice: random.Random, ledger: Ledger) -> None:
        self.client = client
        """Its connection, to be replaced at times."""
        self.dice = dice
        self.ledger = ledger
        self.answered: deque[Options] = deque(maxlen=REMEMBERED)
        """Acknowledged requests, to be repeated."""

    def question(self, **options: Any) -> Options:
        """A new one."""
        request_id = self.ledger.new_id()
        words = "why " * self.dice.choice((1, 5, 20, 200))
        n = self.dice.choice((2, 3, 4, 8))
        return {"prompt": f"question {request_id}: {words}", "request_id": request_id, "n": n, **options}

    async def count(self, kind: str, call: Awaitable[Answer]) -> Answer | None:
        """Awaits a call and notes how it ended; None: not OK."""
        try:
            answer = await call
        except grpc.RpcError as error:
            await self.failed(kind, error)
            return None
        self.ledger.codes[kind]["OK"] += 1
        return answer

    async def failed(self, kind: str, error: grpc.RpcError) -> None:
        """Notes how a call ended that is not OK."""
        self.ledger.codes[kind][error.code().name] += 1
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            await asyncio.sleep(REFUSED_S)

    async def ask(self, kind: str, question: Options, timeout_s: float = LONG_DEADLINE_S) -> pb.GenerateResponse | None:
        """A unary call."""
        answer = await self.count(kind, self.client.generate(timeout=timeout_s, **question))
        return self.noted(question, answer)

    def noted(self, question: Options, answer: pb.GenerateResponse | None) -> pb.GenerateResponse | None:
        """Puts what was answered on the list."""
        if answer is not None:
            self.ledger.answered(answer)
            self.answered.append(question)
        return answer

    def earlier(self) -> Options | None:
        """A request that was answered; None: there is none yet."""
        return self.dice.choice(self.answered) if self.answered else None


async def unary(caller: Caller) -> None:
    """The usual call, by either rule."""
    soft = {"rule": "soft", "selection_temperature": 1.0}
    await caller.ask("unary", caller.question(**(soft if caller.dice.random() < 0.2 else {})))


async def budget(caller: Caller) -> None:
    """Samples that are stopped early."""
    await caller.ask("budget", caller.question(**{**caller.dice.choice(BUDGETS), "n": 8}))


async def short_deadline(caller: Caller) -> None:
    """From hopeless to just enough."""
    await caller.ask("short deadline", caller.question(), timeout_s=caller.dice.uniform(0.001, 0.5))


async def stream(caller: Caller) -> None:
    """All events as they come."""
    await _read("stream", caller, 0.0)


async def slow_stream(caller: Caller) -> None:
    """A reader who takes his time over each event."""
    await _read("slow stream", caller, caller.dice.uniform(0.02, 0.3))


async def _read(kind: str, caller: Caller, pause_s: float) -> None:
    question = caller.question()

    async def read() -> pb.GenerateResponse | None:
        final = None
        async with aclosing(caller.client.generate_stream(timeout=LONG_DEADLINE_S, **question)) as events:
            async for event in events:
                final = event.final if event.HasField("final") else None
                await asyncio.sleep(pause_s)
        return final

    caller.noted(question, await caller.count(kind, read()))


async def cancelled(caller: Caller) -> None:
    """Leaves unless the answer comes first; some come back for it."""
    question = caller.question()
    running = asyncio.create_task(caller.client.generate(timeout=LONG_DEADLINE_S, **question))
    await asyncio.wait((running,), timeout=caller.dice.uniform(0.0, LEAVES_AFTER_S))
    running.cancel()
    await asyncio.wait((running,))
    if not running.cancelled():
        caller.noted(question, await caller.count("cancelled", running))
        return
    caller.ledger.codes["cancelled"]["CANCELLED"] += 1
    if caller.dice.random() < 0.3:
        await caller.ask("after a cancel", question)


async def abandoned_stream(caller: Caller) -> None:
    """Reads some events, or waits for some, and leaves."""
    patience_s, events_read = caller.dice.uniform(0.0, LEAVES_AFTER_S), caller.dice.randrange(1, 4)
    stream = caller.client.generate_stream(timeout=LONG_DEADLINE_S, **caller.question())
    try:
        async with aclosing(stream) as events:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    for _ in range(events_read):
                        await anext(events, None)
    except grpc.RpcError as error:
        await caller.failed("abandoned stream", error)
    else:
        caller.ledger.codes["abandoned stream"]["CANCELLED"] += 1


async def score(caller: Caller) -> None:
    """Completions that the caller brings."""
    request_id = caller.ledger.new_id()
    completions = [f"answer {i} to {request_id}" for i in range(caller.dice.randrange(1, 9))]
    call = caller.client.score("a question", completions, request_id=request_id, timeout=LONG_DEADLINE_S)
    answer = await caller.count("score", call)
    if answer is not None:
        caller.ledger.scored(answer)


async def feedback(caller: Caller) -> None:
    """About an answer of its own; sometimes sent twice."""
    about = caller.earlier()
    if about is None:
        return
    feedback_id = caller.ledger.new_id()
    value = caller.dice.choice((True, 0.5, "a correction"))
    for _ in range(caller.dice.choice((1, 2))):
        call = caller.client.feedback(about["request_id"], "rating", value, feedback_id=feedback_id)
        if await caller.count("feedback", call) is not None:
            caller.ledger.feedback.add(feedback_id)


async def feedback_on_nothing(caller: Caller) -> None:
    """About a request that nobody made."""
    await caller.count("feedback on nothing", caller.client.feedback(caller.ledger.new_id(), "rating", True))


async def repeated(caller: Caller) -> None:
    """The same request again: the stored answer."""
    question = caller.earlier()
    if question is not None:
        await caller.ask("repeated", question)


async def reused(caller: Caller) -> None:
    """The id of another request."""
    question = caller.earlier()
    if question is not None:
        await caller.count("reused id", caller.client.generate(**{**question, "prompt": "something else"}))


async def twins(caller: Caller) -> None:
    """The same request twice at the same time."""
    question = caller.question()
    await asyncio.gather(caller.ask("twins", question), caller.ask("twins", question))


async def bad_input(caller: Caller) -> None:
    """Refused before anything is sampled."""
    await caller.count("bad input", caller.client.generate(**{**caller.question(), **caller.dice.choice(BAD)}))


async def too_big(caller: Caller) -> None:
    """More than a message may have."""
    await caller.count("too big", caller.client.generate("x" * TOO_BIG_CHARS, request_id=caller.ledger.new_id()))


@dataclass(frozen=True)
class CallKind:
    """One thing that callers do."""

    do: Callable[[Caller], Awaitable[None]]
    share: float
    """How often, compared with the others of its table."""
    promised: Mapping[str, frozenset[str]]
    """By what its calls are counted as, the codes that they may end with."""


def _kind(do: Callable[[Caller], Awaitable[None]], share: float, **promised: str) -> CallKind:
    """promised: codes by what is counted, with _ for spaces."""
    return CallKind(do, share, {name.replace("_", " "): frozenset(each.split()) for name, each in promised.items()})


CALLS = (
    _kind(unary, 30, unary="OK"),
    _kind(stream, 15, stream="OK"),
    _kind(slow_stream, 5, slow_stream="OK"),
    _kind(budget, 10, budget="OK FAILED_PRECONDITION"),
    _kind(short_deadline, 10, short_deadline="OK DEADLINE_EXCEEDED"),
    _kind(score, 8, score="OK"),
    _kind(feedback, 6, feedback="OK"),
    _kind(feedback_on_nothing, 1, feedback_on_nothing="NOT_FOUND"),
    _kind(repeated, 6, repeated="OK"),
    _kind(reused, 2, reused_id="ALREADY_EXISTS"),
    _kind(twins, 2, twins="OK ABORTED"),
    _kind(bad_input, 5, bad_input="INVALID_ARGUMENT"),
    _kind(too_big, 0.1, too_big="RESOURCE_EXHAUSTED INVALID_ARGUMENT"),
)
CANCELS = (
    _kind(cancelled, 1, cancelled="OK CANCELLED", after_a_cancel="OK ABORTED"),
    _kind(abandoned_stream, 1, abandoned_stream="CANCELLED"),
)
"""A share of all calls that is an option of its own."""


def promises(may_refuse: bool) -> dict[str, frozenset[str]]:
    """The codes that each kind of call may end with. may_refuse: others may keep the server busy."""
    always = {"UNAVAILABLE"} if may_refuse else set[str]()
    return {name: each | always for kind in CALLS + CANCELS for name, each in kind.promised.items()}
