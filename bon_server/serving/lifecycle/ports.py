"""Where the server listens: gRPC and metrics."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc

from bon_server.config.security import is_loopback
from bon_server.config.settings import Config, LimitsConfig
from bon_server.core.errors import StartupError
from bon_server.serving.auth.guards import Guards, server_credentials
from bon_server.serving.telemetry.endpoint import MetricsEndpoint
from bon_server.serving.telemetry.metrics import Metrics
from bon_server.system.supervision import OnDeath

SPARE_STREAMS = 64
"""Calls on one connection beyond those that may run or wait: refusals under way, health, feedback."""
PENDING_CALLS = 4096
"""Calls that have come and that no handler has yet; each may hold `UNREAD_BYTES`. gRPC's own 1,000 are one burst."""
UNREAD_BYTES = 64 << 10
"""Of each stream."""


def refuse_taken_port(host: str, port: int) -> None:
    """Found out before minutes of loading rather than after."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(f"cannot listen on {_join(host, port)}: {error.strerror}") from None


def channel_options(limits: LimitsConfig, connections: int) -> list[tuple[str, int]]:
    """Of the gRPC server. connections: how many there may be at once."""
    return [
        ("grpc.so_reuseport", 0),  # otherwise two servers bind one port silently and share its calls
        # More cannot run or wait anyway; it also bounds what those leave lying who do not read their streams.
        ("grpc.max_concurrent_streams", limits.max_candidates_in_flight + limits.max_candidates_queued + SPARE_STREAMS),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", connections),
        # Calls that wait to be accepted. Between the two gRPC ends them at random as CANCELLED, without a pushback.
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
        # What may come of a message before anybody reads it: fixed, because gRPC's probing raises it to megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
        ("grpc.server_handshake_timeout_ms", _ms(limits.handshake_s)),
        ("grpc.max_connection_idle_ms", _ms(limits.idle_connection_s)),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        # Clients that ping during a long silent call must not be cut off with "too many pings".
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def bind(server: grpc.aio.Server, host: str, port: int, guards: Guards) -> str:
    """Opens the port and returns `host:port`. Raises StartupError."""
    address = _join(host, port)
    try:
        if guards.certificates is None:
            return _join(host, server.add_insecure_port(address))
        return _join(host, server.add_secure_port(address, server_credentials(guards.certificates)))
    except RuntimeError:
        raise StartupError(f"cannot listen on {address}") from None


async def open_port(
    make: Callable[[], grpc.aio.Server], host: str, guards: Guards, port: int
) -> tuple[grpc.aio.Server, str]:
    """Starts a server that `make` makes, on this port (0: a free one); with its `host:port`. Raises StartupError."""
    server = make()
    address = bind(server, host, port, guards)
    await server.start()
    return server, address


def serve_metrics(
    config: Config, metrics: Metrics, guards: Guards, resources: AsyncExitStack, on_death: OnDeath
) -> str:
    """Answers scrapes until `resources` are closed; returns `host:port`. Raises StartupError."""
    host, port = config.listen.metrics_host, config.listen.metrics_port
    guards = Guards(None, None) if is_loopback(host) else guards
    try:
        endpoint = MetricsEndpoint(host, port, metrics.registry, guards.certificates, guards.keys, on_death)
    except OSError as error:
        raise StartupError(f"cannot serve metrics on {_join(host, port)}: {error.strerror}") from None
    resources.callback(endpoint.close)
    return _join(host, endpoint.port)


def _ms(seconds: float) -> int:
    """As an option takes them."""
    return min(max(1, round(seconds * 1000)), 2**31 - 1)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
