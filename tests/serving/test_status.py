"""Every error has one status, and a status never carries what it must not."""

from __future__ import annotations

import base64

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from bon_server.core import errors
from bon_server.serving.status import CODES, to_status

CANARY = "canary-2f60"


def leaves(error: type[errors.BonError]) -> set[type[errors.BonError]]:
    """Errors that are raised: those without subclasses."""
    below = [leaves(subclass) for subclass in error.__subclasses__() if subclass.__module__ == errors.__name__]
    return set().union(*below) if below else {error}


def test_every_request_error_has_a_status() -> None:
    assert leaves(errors.RequestError) == set(CODES)


def test_no_status_is_unknown_or_ok() -> None:
    assert not {grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK} & set(CODES.values())


@pytest.mark.parametrize("error", [RuntimeError(CANARY), errors.InternalError(CANARY), errors.LogError(CANARY)])
def test_what_is_a_bug_is_internal_and_tells_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    error.__cause__ = ValueError(CANARY)
    error.__context__ = KeyError(CANARY)
    code, message, trailing = to_status(error, "Generate")
    assert code is grpc.StatusCode.INTERNAL
    assert CANARY not in message + str(trailing)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert message.split()[2].rstrip(";") in caplog.text, "the id"
    assert "Generate" in caplog.text
    assert CANARY not in caplog.text


def test_the_operator_sees_where_a_bug_is(caplog: pytest.LogCaptureFixture) -> None:
    def buggy() -> None:
        raise ZeroDivisionError(CANARY)

    with pytest.raises(ZeroDivisionError) as raised:
        buggy()
    to_status(raised.value, "Generate")
    assert "ZeroDivisionError" in caplog.text
    assert "in buggy" in caplog.text
    assert CANARY not in caplog.text


def test_a_subclass_nobody_thought_of_is_internal_and_not_unknown() -> None:
    class New(errors.RequestError):
        pass

    assert to_status(New(CANARY), "Generate")[0] is grpc.StatusCode.INTERNAL


def test_violations_travel_as_a_bad_request() -> None:
    error = errors.InvalidRequest(errors.FieldViolation("n", "0 is not from 1 to 8"))
    code, message, trailing = to_status(error, "Generate")
    assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, "n: 0 is not from 1 to 8")
    ((key, value),) = trailing
    assert key == "grpc-status-details-bin"
    assert isinstance(value, bytes)
    assert len(base64.b64encode(value)) < 1000
    status = Status.FromString(value)
    bad_request = BadRequest()
    assert status.details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].field == "n"


def test_refusals_that_may_be_tried_again_say_when() -> None:
    code, _, trailing = to_status(errors.Unavailable("the server is full", 250), "Generate")
    assert (code, trailing) == (grpc.StatusCode.UNAVAILABLE, (("grpc-retry-pushback-ms", "250"),))
