"""`grpc.health.v1`, of which the probes and load balancers of callers ask.

The one that comes with gRPC lacks `List`, and writes to each watcher with a lock that whoever changes the health needs:
one watcher who reads nothing keeps it from changing for all, and the server from ending.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

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
