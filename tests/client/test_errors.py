"""What a client reads out of a failed call."""

from __future__ import annotations

import bon
import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from tests.client.fake_server import FakeService, Refusal


def _details(*messages: BadRequest | ErrorInfo) -> bytes:
    """A google.rpc.Status as a server attaches it."""
    packed = []
    for message in messages:
        packed.append(AnyMessage())
        packed[-1].Pack(message)
    encoded: bytes = Status(code=3, message="refused", details=packed).SerializeToString()
    return encoded


_TWO = BadRequest(
    field_violations=[
        BadRequest.FieldViolation(field="n", description="0 given, allowed 1 to 64"),
        BadRequest.FieldViolation(field="sampling.top_p", description="1.1 given, allowed (0, 1]"),
    ]
)


async def _error(service: FakeService, target: str, refusal: Refusal) -> grpc.aio.AioRpcError:
    service.refusals.append(refusal)
    async with bon.AsyncClient(target) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate("hello")
    return caught.value


async def test_violations_are_read_among_other_details(service: FakeService, target: str) -> None:
    details = _details(ErrorInfo(reason="x"), _TWO)
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, more=(("grpc-status-details-bin", details),))
    error = await _error(service, target, refusal)
    assert bon.violations(error) == [
        ("n", "0 given, allowed 1 to 64"),
        ("sampling.top_p", "1.1 given, allowed (0, 1]"),
    ]
    assert bon.describe(error) == (
        "INVALID_ARGUMENT: n: 0 given, allowed 1 to 64; sampling.top_p: 1.1 given, allowed (0, 1]"
    )


async def test_errors_without_details_are_described_by_their_words(service: FakeService, target: str) -> None:
    error = await _error(service, target, Refusal(grpc.StatusCode.ABORTED))
    assert bon.violations(error) == []
    assert bon.pushback_s(error) is None
    assert bon.describe(error) == "ABORTED: as scripted"


async def test_foreign_details_do_not_hide_the_error(service: FakeService, target: str) -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, more=(("grpc-status-details-bin", b"\xff\xff"),))
    assert bon.violations(await _error(service, target, refusal)) == []


@pytest.mark.parametrize(("pushback_ms", "expected_s"), [(250, 0.25), (0, 0.0), (-1, None)])
async def test_pushback(service: FakeService, target: str, pushback_ms: int, expected_s: float | None) -> None:
    error = await _error(service, target, Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms))
    assert bon.pushback_s(error) == expected_s
