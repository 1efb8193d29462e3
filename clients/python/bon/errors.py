"""What a failed call says: field violations, pushback, one line for people.

gRPC errors reach the caller as they are (`grpc.RpcError`); these functions read what the server attached to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from bon.visible import visible

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


class Violation(NamedTuple):
    """One field that the server refused."""

    field: str
    """Path in the proto, for example `sampling.top_p`."""
    description: str
    """The value given and what is allowed."""


def violations(error: grpc.RpcError) -> list[Violation]:
    """The field violations of an INVALID_ARGUMENT; empty for an error without any."""
    encoded = _trailing(error, _DETAILS_KEY)
    if not isinstance(encoded, bytes):
        return []
    try:
        status = _parse("Status", encoded)
        requests = [_parse("BadRequest", detail.value) for detail in status.details if _is_bad_request(detail)]
    except DecodeError:  # somebody else's trailer: the status code still says what happened
        return []
    return [Violation(v.field, v.description) for request in requests for v in request.field_violations]


def pushback_s(error: grpc.RpcError) -> float | None:
    """Seconds after which the server invites a retry; None when it does not say, or says not to."""
    given_ms = _trailing(error, _PUSHBACK_KEY)
    if given_ms is None or not str(given_ms).isdecimal():
        return None
    return int(given_ms) / 1000


def describe(error: grpc.RpcError) -> str:
    """One line: the code, then the violations, or the server's words where there are none; fit for a terminal."""
    found = violations(error)
    words = "; ".join(f"{v.field}: {v.description}" for v in found) or error.details() or "no details"
    return f"{error.code().name}: {visible(words)}"


def _trailing(error: grpc.RpcError, key: str) -> str | bytes | None:
    # Pairs in both stacks; the published types know only the blocking one's.
    pairs = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return next((value for name, value in pairs if name == key), None)


def _is_bad_request(detail: any_pb2.Any) -> bool:
    return detail.type_url.rpartition("/")[2] == "google.rpc.BadRequest"


def _parse(message: str, encoded: bytes) -> Any:
    """Parses one of the three messages below; untyped, since they are made at run time."""
    return _messages()[f"bon.error_details.{message}"].FromString(encoded)


@cache
def _messages() -> dict[str, Any]:
    """The parts of google.rpc.Status and google.rpc.BadRequest that are read, by field number.

    Made in a pool of their own: googleapis-common-protos is no dependency, and may be there all the same.
    """
    file = descriptor_pb2.FileDescriptorProto(name="bon/error_details.proto", package="bon.error_details")
    file.syntax = "proto3"
    file.dependency.append(any_pb2.DESCRIPTOR.name)
    text = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    _add_message(file, "Status", details=(3, ".google.protobuf.Any"))
    _add_message(file, "BadRequest", field_violations=(1, ".bon.error_details.FieldViolation"))
    violation = file.message_type.add(name="FieldViolation")
    violation.field.add(name="field", number=1, type=text)
    violation.field.add(name="description", number=2, type=text)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return dict(message_factory.GetMessageClassesForFiles([file.name], pool))


def _add_message(file: descriptor_pb2.FileDescriptorProto, name: str, **fields: tuple[int, str]) -> None:
    """A message of repeated messages: `name=(number, type)`."""
    message = file.message_type.add(name=name)
    for field, (number, type_name) in fields.items():
        repeated = message.field.add(name=field, number=number, type_name=type_name)
        repeated.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
        repeated.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
