"""A BestOfNService that answers from a script, over real gRPC on a free port."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceServicer, add_BestOfNServiceServicer_to_server

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Refusal:
    """How one call ends instead of being answered."""

    code: grpc.StatusCode
    pushback_ms: int | None = None
    """Not 0 with a code that is retried: gRPC 1.85 then never retries, and the call waits for its deadline."""
    more: Metadata = ()
    details: str = "as scripted"

    @property
    def trailing(self) -> Metadata:
        """What the status carries."""
        pushback = () if self.pushback_ms is None else (("grpc-retry-pushback-ms", str(self.pushback_ms)),)
        return (*pushback, *self.more)


@dataclass
class FakeService(BestOfNServiceServicer):
    """Refuses as scripted, then answers; keeps answers by request id, as the real one does."""

    refusals: deque[Refusal] = field(default_factory=deque)
    refusal_by_prompt: dict[str, Refusal] = field(default_factory=dict)
    """For good, by the first message or text."""
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    """Every attempt, refused ones included."""
    scores: list[pb.ScoreRequest] = field(default_factory=list)
    feedback: list[pb.RecordFeedbackRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    answers: dict[str, pb.GenerateResponse] = field(default_factory=dict)
    delay_s: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def has_seen(self, *, requests: int = 0, answers: int = 0) -> None:
        """Waits until at least so many attempts and answers."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= requests and len(self.answers) >= answers)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """The stored answer, or a fresh one."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._notify()
        try:
            await self._refuse(_first_text(request), context)
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.in_flight -= 1
        answer = self._answer(request)
        await self._notify()
        return answer

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """All candidates, then the answer; with a delay, it never gets beyond the first."""
        answer = self._answer(request.request)
        try:
            for candidate in answer.candidates:
                yield pb.GenerateStreamResponse(candidate=candidate)
                await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield pb.GenerateStreamResponse(final=answer)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        """The length of each completion."""
        self.scores.append(request)
        candidates = [pb.Candidate(index=i, text=text, reward=len(text)) for i, text in enumerate(request.completions)]
        return pb.ScoreResponse(request_id=request.request_id, candidates=candidates)

    async def RecordFeedback(self, request: pb.RecordFeedbackRequest, context: Any) -> pb.RecordFeedbackResponse:
        """Keeps it."""
        self.feedback.append(request)
        return pb.RecordFeedbackResponse(feedback_id=request.feedback_id)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """Just a version."""
        return pb.GetServerInfoResponse(version="fake")

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _refuse(self, text: str, context: Any) -> None:
        if text in self.refusal_by_prompt:
            await _abort(context, self.refusal_by_prompt[text])
        if self.refusals:
            await _abort(context, self.refusals.popleft())

    def _answer(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        stored = self.answers.get(request.request_id)
        if stored is not None:
            replay = pb.GenerateResponse()
            replay.CopyFrom(stored)
            replay.replayed = True
            return replay
        answer = _fresh_answer(request)
        self.answers[request.request_id] = answer
        return answer


async def _abort(context: Any, refusal: Refusal) -> NoReturn:
    await context.abort(refusal.code, refusal.details, refusal.trailing)
    raise AssertionError("abort returned")


def _first_text(request: pb.GenerateRequest) -> str:
    return request.text or (request.chat.messages[0].content if request.chat.messages else "")


def _fresh_answer(request: pb.GenerateRequest) -> pb.GenerateResponse:
    """n candidates; text and reward follow from prompt and index."""
    candidates = []
    for index in range(request.n or 1):
        text = f"{_first_text(request)} #{index}"
        reward = hashlib.sha256(text.encode()).digest()[0] / 256
        candidates.append(
            pb.Candidate(
                index=index,
                text=text,
                reward=reward,
                finish_reason=pb.FINISH_REASON_STOP,
                status=pb.CANDIDATE_STATUS_SCORED,
            )
        )
    return pb.GenerateResponse(
        request_id=request.request_id,
        best=max(candidates, key=lambda candidate: candidate.reward),
        candidates=candidates,
        n_requested=len(candidates),
        n_generated=len(candidates),
        n_scored=len(candidates),
        selection_reason=pb.SELECTION_REASON_ARGMAX,
    )


@asynccontextmanager
async def serving(service: FakeService, port: int = 0) -> AsyncIterator[int]:
    """Runs the service; yields its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)])
    add_BestOfNServiceServicer_to_server(service, server)
    bound_port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound_port
    finally:
        await server.stop(None)
