"""A gRPC server that no caller can end by the name of a method.

In grpcio 1.85 one call whose `:path` is not UTF-8 ends the loop that accepts calls: it decodes the name of each method
that is not registered. So all of ours are registered, whose names are known, and calls of all others are refused here,
without a look at their names. This extends a private class of grpcio. With a grpcio that we do not know, the server is
a plain one, and `listener` starts another one in its place whenever it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server as grpc_server

from bon_server.serving.rpc.builtin import Handlers

logger = logging.getLogger(__name__)

KNOWN_GRPCIO = ("1.85.",)
"""Versions whose private class was read and tested (tests/serving/lifecycle/test_odd_calls.py)."""
UNKNOWN_METHOD = "unknown"

Options = Sequence[tuple[str, Any]]
Interceptors = Sequence[grpc.aio.ServerInterceptor]


def make_server(services: Mapping[str, Handlers], interceptors: Interceptors, options: Options) -> grpc.aio.Server:
    """A server with these services, by name, and no port yet."""
    server: Any
    if grpc.__version__.startswith(KNOWN_GRPCIO):
        server = _GuardedServer(interceptors, options)
    else:
        logger.warning(
            "grpcio %s is not known here: odd calls may end its listener, which then restarts", grpc.__version__
        )
        server = grpc.aio.server(interceptors=interceptors, options=options)
    for service, handlers in services.items():
        server.add_registered_method_handlers(service, handlers)
    made: grpc.aio.Server = server
    return made


class _GuardedServer(grpc_server.Server):
    """As `grpc.aio.server` makes one, with another accept loop."""

    def __init__(self, interceptors: Interceptors, options: Options) -> None:
        self._loop: Any = cygrpc.get_working_loop()
        arguments = grpc_server._augment_channel_arguments(options, None)
        self._server: Any = _GuardedAioServer(self._loop, None, (), tuple(interceptors), arguments, None)
        self._server.refusing_through(tuple(interceptors))


class _GuardedAioServer(cygrpc.AioServer):  # type: ignore[misc]  # it has no stubs
    """Its base awaits `_request_call` for each call of a method that is not registered."""

    def refusing_through(self, interceptors: tuple[grpc.aio.ServerInterceptor, ...]) -> None:
        """These may refuse such a call before it is said that there is no such method."""
        self._refused_through = interceptors
        self._no_methods = cygrpc._MethodResolver([], {})
        self._refusals: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> Any:
        """Never returns; ends as the base's does when the server stops."""
        while True:
            self._refuse(await super()._request_call())

    def _refuse(self, call: Any) -> None:
        """Starts what the base's loop would start, for a method that nobody has."""
        loop = asyncio.get_running_loop()
        handling = cygrpc._handle_rpc(UNKNOWN_METHOD, self._no_methods, self._refused_through, call, loop, False)
        refusal = loop.create_task(cygrpc._schedule_rpc_coro(handling, call, loop, UNKNOWN_METHOD))
        self._refusals.add(refusal)
        refusal.add_done_callback(self._refusals.discard)
