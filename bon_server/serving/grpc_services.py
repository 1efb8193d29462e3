"""Health and reflection, as they come with gRPC, except that malformed requests are INVALID_ARGUMENT.

gRPC parses requests outside of the handlers and answers what it cannot parse with UNKNOWN and a traceback in the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

Parse = Callable[[bytes], Message]


def add_health(server: grpc.aio.Server) -> HealthServicer:
    """Adds `grpc.health.v1.Health`; set what it says on the result."""
    health = HealthServicer()
    registrar: Any = _Registrar(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, registrar)
    return health


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Adds `grpc.reflection.v1alpha.ServerReflection`, which lists `services`."""
    add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(ReflectionServicer(services), _Registrar(server))


class _Registrar:
    """What generated code takes for the server when it adds a service."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same handlers come by name as well."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Adds the handlers with their parsing moved inside."""
        parsing = {name: _parsing_inside(handler) for name, handler in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, parsing),))


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
