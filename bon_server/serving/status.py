"""Errors → gRPC status: one table, exhaustive (a test fails on a `RequestError` that is not in it)."""

from __future__ import annotations

import logging
from uuid import uuid4

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from bon_server.core import errors

logger = logging.getLogger(__name__)

CODES: dict[type[errors.RequestError], grpc.StatusCode] = {
    errors.NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedOption: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RequestIdRunning: grpc.StatusCode.ABORTED,
    errors.RequestIdReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.UnknownRequest: grpc.StatusCode.NOT_FOUND,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.LogFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.ReaderStalled: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SenderStalled: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RequestCancelled: grpc.StatusCode.CANCELLED,
    errors.SamplingFailed: grpc.StatusCode.INTERNAL,
    errors.RewardFailed: grpc.StatusCode.INTERNAL,
    errors.NothingFinite: grpc.StatusCode.INTERNAL,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

Metadata = tuple[tuple[str, str | bytes], ...]


def to_status(error: BaseException, method: str) -> tuple[grpc.StatusCode, str, Metadata]:
    """Code, message and trailing metadata for the caller. What is INTERNAL goes to the server's log under an id."""
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)  # type: ignore[arg-type]
    if code is grpc.StatusCode.INTERNAL:
        return code, _logged(error, method), ()
    if isinstance(error, errors.InvalidRequest):
        return code, str(error), (("grpc-status-details-bin", _bad_request(error)),)
    if (
        isinstance(error, errors.Unavailable | errors.LogFull | errors.QuotaExceeded)
        and error.retry_after_ms is not None
    ):
        return code, str(error), (("grpc-retry-pushback-ms", str(error.retry_after_ms)),)
    return code, str(error), ()


def _logged(error: BaseException, method: str) -> str:
    """Writes what happened to the operator's log, without content, and returns what the caller may see."""
    error_id = uuid4().hex[:12]
    bug = not isinstance(error, errors.RequestError) or isinstance(error, errors.InternalError)
    summary = type(error).__name__ if bug else f"{type(error).__name__}: {error}"
    logger.error("error %s in %s: %s", error_id, method, summary, exc_info=_without_message(error) if bug else None)
    return f"internal error {error_id}; the server's log has the details"


def _without_message(error: BaseException) -> BaseException:
    """The traceback of a bug without its message, which may hold prompt text."""
    cause = error.__cause__ or error
    return RuntimeError(f"{type(cause).__name__} (message withheld)").with_traceback(cause.__traceback__)


def _bad_request(error: errors.InvalidRequest) -> bytes:
    violations = [
        BadRequest.FieldViolation(field=violation.field, description=violation.problem)
        for violation in error.violations
    ]
    detail = Any()
    detail.Pack(BadRequest(field_violations=violations))
    code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    status: bytes = Status(code=code, message=str(error), details=[detail]).SerializeToString()
    return status
