"""The asyncio client: the same calls, awaited."""

# ruff: noqa: ASYNC109 (a gRPC deadline travels to the server; asyncio.timeout would not)

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc

from bon import channel
from bon.channel import CLIENT_TIMEOUT, Timeout
from bon.requests import (
    GenerateOptions,
    Prompt,
    ScoreOptions,
    feedback_request,
    generate_request,
    score_request,
)
from bon.security import Security, secured
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub


class AsyncClient:
    """A connection to one server, for one event loop. Close it, or use it in an `async with` statement.

    A call that fails raises `grpc.RpcError`; `bon.violations` and `bon.describe` read it. UNAVAILABLE is retried, up to
    `attempts` times in all and only until the deadline; nothing else is.
    """

    def __init__(
        self,
        target: str = channel.DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float | None = channel.DEFAULT_TIMEOUT_S,
        attempts: int = channel.DEFAULT_ATTEMPTS,
        keepalive_s: float | None = channel.DEFAULT_KEEPALIVE_S,
        options: Mapping[str, str | int] | None = None,
        **security: Unpack[Security],
    ) -> None:
        """Connects at the first call. Make it inside the running event loop.

        target: `host:port`; security: API key and TLS, see `bon.Security`; credentials: TLS that is made elsewhere;
        timeout: deadline of a call in seconds, None: none; attempts: 1 to 5, the first included; keepalive_s: silence
        after which the server is pinged, None: never; options: more gRPC channel options. Raises `bon.SecurityError`,
        among other things for a key that would go to another machine in plain text, and OSError.
        """
        settings = channel.channel_options(attempts, keepalive_s, options or {})
        credentials, self._metadata = secured(target, credentials, security)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=settings)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=settings)
        self._stub = BestOfNServiceStub(self._channel)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends running calls and the connection."""
        await self._channel.close()

    async def generate(
        self, prompt: Prompt, *, timeout: Timeout = CLIENT_TIMEOUT, **options: Unpack[GenerateOptions]
    ) -> pb.GenerateResponse:
        """The best of n answers to `prompt`."""
        return await self.send(generate_request(prompt, **options), timeout=timeout)

    async def send(self, request: pb.GenerateRequest, *, timeout: Timeout = CLIENT_TIMEOUT) -> pb.GenerateResponse:
        """Generate, for a request that is already a message. Give it a `request_id`: retries rely on it."""
        return await self._stub.Generate(request, timeout=self._seconds(timeout), metadata=self._metadata)

    def generate_stream(
        self, prompt: Prompt, *, timeout: Timeout = CLIENT_TIMEOUT, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        """Each candidate as it is scored; the last event is `final`, the unary answer.

        The call begins with the first event asked for, and is cancelled when the generator is closed.
        """
        request = pb.GenerateStreamRequest(request=generate_request(prompt, **options))
        return self._events(request, timeout)

    async def _events(
        self, request: pb.GenerateStreamRequest, timeout: Timeout
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        call = self._stub.GenerateStream(request, timeout=self._seconds(timeout), metadata=self._metadata)
        try:
            async for event in call:
                yield event
        finally:
            call.cancel()  # gRPC never collects an abandoned stream (grpc#43462)

    async def score(
        self,
        prompt: Prompt,
        completions: Sequence[str],
        *,
        timeout: Timeout = CLIENT_TIMEOUT,
        **options: Unpack[ScoreOptions],
    ) -> pb.ScoreResponse:
        """Rewards of completions that you bring."""
        request = score_request(prompt, completions, **options)
        return await self._stub.Score(request, timeout=self._seconds(timeout), metadata=self._metadata)

    async def feedback(
        self,
        request_id: str,
        name: str,
        value: bool | float | str,
        *,
        candidate_index: int | None = None,
        feedback_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        timeout: Timeout = CLIENT_TIMEOUT,
    ) -> pb.RecordFeedbackResponse:
        """Attaches an observation to a logged request, or to one of its candidates.

        value: true or false, a finite number, or a text; candidate_index: None is the answer as a whole; feedback_id:
        idempotency key, a fresh UUID unless given, so that a retry is not a second observation.
        """
        request = feedback_request(
            request_id, name, value, candidate_index=candidate_index, feedback_id=feedback_id, tags=tags
        )
        return await self._stub.RecordFeedback(request, timeout=self._seconds(timeout), metadata=self._metadata)

    record_feedback = feedback
    """The same, by the name of the RPC."""

    async def server_info(self, *, timeout: Timeout = CLIENT_TIMEOUT) -> pb.GetServerInfoResponse:
        """Which models answer, with which limits and defaults."""
        request = pb.GetServerInfoRequest()
        return await self._stub.GetServerInfo(request, timeout=self._seconds(timeout), metadata=self._metadata)

    def _seconds(self, timeout: Timeout) -> float | None:
        return channel.seconds(timeout, self._timeout)
