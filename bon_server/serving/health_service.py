"""`grpc.health.v1`, of which the probes and load balancers of callers ask.

The one that comes with gRPC lacks `List`, and writes to each watcher with a lock that whoever changes the health needs:
one watcher who reads nothing keeps it from changing for all, and the server from ending.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    Status = health_pb2.HealthCheckResponse.ServingStatus.ValueType

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Says of each service what was set last."""

    def __init__(self) -> None:
        self._said: dict[str, Status] = {}
        self._changed = asyncio.Event()
        """Of the present state; another one's from the next change on."""

    async def set(self, service: str, status: Status) -> None:
        """From now on, to those as well who watch."""
        self._said[service] = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND for a service that nothing is said of."""
        status = self._said.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
            raise AssertionError("abort does not return")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """All of them."""
        said = {service: health_pb2.HealthCheckResponse(status=status) for service, status in self._said.items()}
        return health_pb2.HealthListResponse(statuses=said)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Whoever reads slowly misses what was true for a short while; never what is true."""
        last = None
        while True:
            changed, status = self._changed, self._said.get(request.service, UNKNOWN)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            await changed.wait()
