"""How both clients connect: channel options, retries, deadlines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Final

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 120.0
DEFAULT_ATTEMPTS: Final = 5
DEFAULT_KEEPALIVE_S: Final = 30.0
MAX_MESSAGE_BYTES: Final = 64 << 20
"""Longest answer that is accepted: many candidates with token ids pass gRPC's own 4 MiB."""

Option = tuple[str, str | int]


class ClientTimeout(Enum):
    """The type of `CLIENT_TIMEOUT`."""

    DEFAULT = "the client's timeout"


CLIENT_TIMEOUT: Final = ClientTimeout.DEFAULT
"""As `timeout` of a call: the one the client was made with."""

Timeout = float | ClientTimeout | None
"""Deadline of a call in seconds; None: no deadline."""


def seconds(timeout: Timeout, of_client: float | None) -> float | None:
    """The deadline in force."""
    return of_client if isinstance(timeout, ClientTimeout) else timeout


def channel_options(attempts: int, keepalive_s: float | None, more: Mapping[str, str | int]) -> list[Option]:
    """gRPC channel options; `more` wins over what is chosen here.

    attempts: 1 to 5, the first included; keepalive_s: seconds of silence after which the peer is pinged, None: never.
    """
    if not 1 <= attempts <= 5:
        raise ValueError(f"attempts is {attempts}; allowed: 1 to 5 (more than 5 are cut by gRPC)")
    chosen: dict[str, str | int] = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        # gRPC drops the retries of a request that is longer than this buffer; its default is 256 KiB.
        "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES,
        # A server that restarts is found again within seconds; the default backoff grows to two minutes.
        "grpc.initial_reconnect_backoff_ms": 200,
        "grpc.max_reconnect_backoff_ms": 5_000,
        **_retry_options(attempts),
        **_keepalive_options(keepalive_s),
        **more,
    }
    return list(chosen.items())


def _retry_options(attempts: int) -> dict[str, str | int]:
    if attempts == 1:
        return {"grpc.enable_retries": 0}
    return {"grpc.service_config": json.dumps(_service_config(attempts))}


def _service_config(attempts: int) -> dict[str, object]:
    """Retries on UNAVAILABLE alone, after the server's pushback where it names one.

    Safe for every RPC of the service: each request carries an idempotency key, so a second attempt is answered with the
    first one's record. ABORTED (the first attempt still runs) is left to the caller, who knows how long to wait.
    """
    retry_policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.2s",
        "maxBackoff": "5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {"methodConfig": [{"name": [{"service": "bon.v1.BestOfNService"}], "retryPolicy": retry_policy}]}


def _keepalive_options(keepalive_s: float | None) -> dict[str, str | int]:
    """Pings during silent calls, so that a vanished server ends them; sampling can be silent for minutes."""
    if keepalive_s is None:
        return {}
    return {
        "grpc.keepalive_time_ms": int(keepalive_s * 1000),
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.http2.max_pings_without_data": 0,
    }
