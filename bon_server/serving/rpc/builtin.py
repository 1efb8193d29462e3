"""The services that are not ours, health (`grpc.health.v1`) and reflection, as handlers that the server takes.

gRPC's own health service lacks `List`, and writes to each watcher with a lock that whoever changes the health needs:
one watcher who reads nothing keeps it from changing for all, and the server from ending. `HealthServicer` has neither
fault.

gRPC parses requests outside of the handlers and answers what it cannot parse with UNKNOWN and a traceback in the log.
So the handlers here take bytes and parse them themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

_messages: Any = health_pb2
"""Its stubs are older than `List`."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Says of each service what was set last."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._changed = asyncio.Event()
        """Of the present state; another one's from the next change on."""

    async def set(self, service: str, status: int) -> None:
        """From now on, to those as well who watch."""
        self._said[service] = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """NOT_FOUND for a service that nothing is said of."""
        status = self._said.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return _messages.HealthCheckResponse(status=status)

    async def List(self, request: object, context: Any) -> Any:
        """All of them."""
        said = {service: _messages.HealthCheckResponse(status=status) for service, status in self._said.items()}
        return _messages.HealthListResponse(statuses=said)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Whoever reads slowly misses what was true for a short while; never what is true."""
        last = None
        while True:
            changed = self._changed
            status = self._said.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                await context.write(_messages.HealthCheckResponse(status=status))
                last = status
            await changed.wait()


Parse = Callable[[bytes], Message]
Handlers: TypeAlias = "Mapping[str, grpc.RpcMethodHandler[Any, Any]]"
"""Of one service, by the names of its methods."""


def health_handlers(health: HealthServicer) -> dict[str, Handlers]:
    """`grpc.health.v1.Health`, under its name."""
    taken: Any = _Registrar()
    health_pb2_grpc.add_HealthServicer_to_server(health, taken)
    return dict(taken.services)


def reflection_handlers(services: Sequence[str]) -> dict[str, Handlers]:
    """`grpc.reflection.v1alpha.ServerReflection`, which lists `services`, under its name."""
    taken = _Registrar()
    add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(ReflectionServicer(services), taken)
    return dict(taken.services)


class _Registrar:
    """What generated code takes for the server when it adds a service."""

    def __init__(self) -> None:
        self.services: dict[str, Handlers] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same handlers come by name as well."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Keeps the handlers, with their parsing moved inside."""
        self.services[service] = {name: _parsing_inside(handler) for name, handler in methods.items()}


def _parsing_inside(handler: Any) -> Any:
    """The handler with bytes for requests. Those of a health watch write to the context, those of reflection yield."""
    parse: Parse = handler.request_deserializer

    async def answer(data: bytes, context: Any) -> Any:
        return await (handler.unary_unary or handler.unary_stream)(await _parsed(data, parse, context), context)

    async def converse(stream: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async for response in handler.stream_stream(_parsed_stream(stream, parse, context), context):
            yield response

    inside = {"unary_unary": answer, "unary_stream": answer, "stream_stream": converse}
    replaced = {kind: function for kind, function in inside.items() if getattr(handler, kind) is not None}
    return handler._replace(request_deserializer=None, **replaced)


async def _parsed_stream(stream: AsyncIterator[bytes], parse: Parse, context: Any) -> AsyncIterator[Message]:
    async for data in stream:
        yield await _parsed(data, parse, context)


async def _parsed(data: bytes, parse: Parse, context: Any) -> Message:
    try:
        return parse(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{len(data)} bytes are not a request of this method")
        raise  # abort does not return
