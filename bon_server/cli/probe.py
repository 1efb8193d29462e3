"""`bon health`: asks a server whether it can take new work, as probes of containers and service managers do."""

from __future__ import annotations

from typing import Any, Unpack

import grpc
from bon.security import Security, secured
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = "SERVING"
NOT_REACHED = "NOT_REACHED"
"""What is said of a server that did not answer in time."""


def health(
    target: str,
    *,
    service: str = "",
    timeout_s: float,
    tls_name: str | None = None,
    **security: Unpack[Security],
) -> str:
    """`SERVING`, `NOT_SERVING`, `SERVICE_UNKNOWN`, or `NOT_REACHED` with gRPC's code.

    service: empty for the server as a whole. tls_name: the name in the certificate, where it is not the one in
    `target`. security: TLS as for a client; no key is sent. Raises bon.SecurityError, and OSError for files that cannot
    be read.
    """
    options = [] if tls_name is None else [("grpc.ssl_target_name_override", tls_name)]
    credentials, _ = secured(target, None, security, environment={})
    if credentials is None:
        channel = grpc.insecure_channel(target)
    else:
        channel = grpc.secure_channel(target, credentials, options)
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            return "SERVICE_UNKNOWN" if code is grpc.StatusCode.NOT_FOUND else f"{NOT_REACHED} ({code.name})"
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return status
