"""Bytes of requests in memory are bounded: a call reserves room for the largest message before anything of it is read.

    reserve max_message_bytes ──► read, for a limited time ──► keep the true size until the handler has ended

The length of a message is unknown until it has arrived, and gRPC reads that of a unary call before its handler runs.
So every call is given to gRPC as a stream, which on the wire it is anyway, and its one message is read here. A call
that finds no room waits, and nothing of it is read meanwhile beyond what HTTP/2 lets a sender send unasked; small
messages come and go within milliseconds, so a burst of them waits for one another and is not refused.

gRPC does not call the handler of a unary method for a caller who sends no message, and leaves the caller without a
status until its deadline. Here such a call is INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import grpc

from bon_server.config.settings import LimitsConfig
from bon_server.core.errors import FieldViolation, InvalidRequest, RequestError, SenderStalled, Unavailable
from bon_server.serving.auth.access import RIGHTS, Access, Continue, Handler
from bon_server.serving.status import to_status

PROBES_AT_ONCE: Final = 4
"""Messages of methods that need no key, such as health checks: they have room of their own, which no caller takes."""

Refused = Callable[[str], None]
"""Told why a message was not taken: `full` or `slow`."""


class Room:
    """Bytes that messages may take. For one event loop."""

    def __init__(self, limit_bytes: int, message_bytes: int, most_waiting: int, patience_s: float) -> None:
        """message_bytes: what each call reserves. Calls beyond `most_waiting`, or after `patience_s`, are refused."""
        self.limit_bytes = limit_bytes
        self.message_bytes = message_bytes
        self.held_bytes = 0
        """Reserved, or taken by messages whose handlers run."""
        self._most_waiting = most_waiting
        self._patience_s = patience_s
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def reserve(self) -> bool:
        """Holds `message_bytes`, after a wait for its turn if need be; False: there is no room."""
        if not self._waiting and self._fits():
            self.held_bytes += self.message_bytes
            return True
        if len(self._waiting) >= self._most_waiting:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._patience_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as left:
            with suppress(ValueError):  # it was taken out already
                self._waiting.remove(turn)
            if turn.done() and not turn.cancelled():  # its turn came in the same moment
                self.give_back(self.message_bytes)
            if isinstance(left, TimeoutError):
                return False
            raise
        return True

    def give_back(self, size_bytes: int) -> None:
        """Lets those in who wait, in their order."""
        self.held_bytes -= size_bytes
        while self._waiting and self._fits():
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.held_bytes += self.message_bytes
                turn.set_result(None)

    def _fits(self) -> bool:
        return self.held_bytes + self.message_bytes <= self.limit_bytes


class Receiving(grpc.aio.ServerInterceptor):
    """Reads the message of each call within bounds. After `Authentication`, so that strangers reserve nothing."""

    def __init__(self, limits: LimitsConfig, refused: Refused) -> None:
        most_waiting = limits.max_candidates_in_flight + limits.max_candidates_queued
        largest = limits.max_message_bytes
        self.room = Room(limits.max_bytes_in_flight, largest, most_waiting, limits.max_queue_s)
        self._probes = Room(PROBES_AT_ONCE * largest, largest, most_waiting, limits.max_queue_s)
        self._limits = limits
        self._refused = refused

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Handler | None:
        """As gRPC calls it."""
        handler: Any = await continuation(details)
        if handler is None:
            return None
        room = self._probes if RIGHTS.get(details.method) is Access.OPEN else self.room
        receive = self._each if handler.request_streaming else self._one

        async def answer(_: object, context: Any) -> None:
            if not await room.reserve():
                self._refused("full")
                full = Unavailable("the server has no room for another message", self._limits.retry_after_ms)
                await _refuse(full, details.method, context)
            await receive(handler, room, context, details.method)

        return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)

    async def _one(self, handler: Any, room: Room, context: Any, method: str) -> None:
        """The only message of a call, and its answer."""
        held_bytes = room.message_bytes
        try:
            message = [await self._read(context, method)]
            if message[0] is grpc.aio.EOF:
                await _refuse(InvalidRequest(FieldViolation("message", "there is none")), method, context)
            room.give_back(held_bytes - len(message[0]))
            held_bytes = len(message[0])
            # Popped: what a refused call leaves in a cycle of gRPC's must not keep its message, see `_forgotten`.
            await _answer(handler.unary_unary or handler.unary_stream, message.pop(), context, handler)
        finally:
            room.give_back(held_bytes)

    async def _each(self, handler: Any, room: Room, context: Any, method: str) -> None:
        """Any number of messages, one at a time in the room of one."""

        async def messages() -> AsyncIterator[bytes]:
            while (message := await self._read(context, method)) is not grpc.aio.EOF:
                yield message

        try:
            await _answer(handler.stream_unary or handler.stream_stream, messages(), context, handler)
        finally:
            room.give_back(room.message_bytes)

    async def _read(self, context: Any, method: str) -> Any:
        """Bytes, or `EOF`."""
        patience_s = self._limits.slow_sender_s
        try:
            async with asyncio.timeout(patience_s):
                return await context.read()
        except TimeoutError:
            self._refused("slow")
            stalled = SenderStalled(f"the message did not arrive within {patience_s:g} s")
            await _refuse(stalled, method, context)


async def _answer(behaviour: Callable[..., Any], message: object, context: Any, handler: Any) -> None:
    if inspect.isasyncgenfunction(behaviour):
        async for response in behaviour(message, context):
            await context.write(response)
        return
    running: Awaitable[Any] = behaviour(message, context)
    del message
    answer = await running
    if not handler.response_streaming:
        await context.write(answer)


async def _refuse(error: RequestError, method: str, context: Any) -> None:
    await context.abort(*to_status(error, method))
