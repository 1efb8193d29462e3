"""Messages as nobody would send them get an answer or a promised refusal that names a field; nothing crashes.

In process, through the functions that the handlers call, in great number; through gRPC in hundreds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bon_server.config.settings import DefaultsConfig, LimitsConfig, LogConfig
from bon_server.core.errors import BonError, InvalidRequest, UnsupportedOption
from bon_server.models.policy.synthetic import SyntheticPolicy
from bon_server.serving.rpc import feedback, parse
from bon_server.serving.status import to_status
from tests.faults.bad_bytes import SERVICE
from tests.faults.messages import EVERYTHING, REQUESTS, names_a_field
from tests.faults.place import Kind, Place, opened, see

CODE = grpc.StatusCode
PROMISED = {CODE.OK, CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION}
"""Of the parser and the validator."""
PROMISED_BY_THE_SERVER = PROMISED | {CODE.NOT_FOUND, CODE.ALREADY_EXISTS}
"""A message may well ask for what is not there, or take an id that is taken."""
FEW, MANY, THROUGH_GRPC = 1_000, 33_400, 200
"""Of each sort of messages: every time, in the long tests (100,000 in all), and through gRPC."""

PATIENT = settings(database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])


SEEN: Counter[CODE] = Counter()
"""Through gRPC."""


class Handlers:
    """What the service does with a message before it has anything to do with models."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._policy = SyntheticPolicy.from_spec("synthetic")
        self.codes: Counter[CODE] = Counter()

    def __call__(self, method: str, data: bytes) -> None:
        """Ends as promised, or raises what the server would call a bug."""
        kind = REQUESTS[method]
        try:
            self._runner.run(self._handle(method, parse.parse(kind, data)))
        except BonError as error:
            code, _, trailing = to_status(error, method)
            assert code in PROMISED, (code, error)
            assert isinstance(error, InvalidRequest | UnsupportedOption)
            check_fields(kind, code, str(error), dict(trailing))
            self.codes[code] += 1
        else:
            self.codes[CODE.OK] += 1

    async def _handle(self, method: str, message: Any) -> None:
        limits, log = LimitsConfig(), LogConfig()
        if method == "GenerateStream":
            message = message.request
        if method in ("Generate", "GenerateStream"):
            await parse.to_generate(message, "", self._policy, limits, DefaultsConfig(), log)
        elif method == "Score":
            await parse.to_score(message, "", self._policy, limits, log)
        elif method == "RecordFeedback":
            feedback._check(message)

    def close(self) -> None:
        """Ends its loop."""
        self._runner.close()


def check_fields(kind: type[Message], code: CODE, said: str, trailing: dict[str, Any]) -> None:
    """The refusal names fields that there are."""
    if code is CODE.INVALID_ARGUMENT:
        detail = BadRequest()
        assert Status.FromString(trailing["grpc-status-details-bin"]).details[0].Unpack(detail)
        names = [violation.field for violation in detail.field_violations]
    else:
        names = [said.split(":")[0].split(" ")[0]]
    assert names
    for name in names:
        assert name == "message" or names_a_field(kind, name), name


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    handlers = Handlers()
    yield handlers
    handlers.close()


def fuzz(handlers: Handlers, sort: str, count: int) -> None:
    """Runs so many examples; hypothesis makes what fails as small as it can."""

    @settings(PATIENT, max_examples=count)
    @given(EVERYTHING[sort])
    def run(example: tuple[str, bytes]) -> None:
        handlers(*example)

    run()


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.parametrize("sort", EVERYTHING)
def test_parser_and_validator(
    handlers: Handlers, sort: str, count: int, record_property: Callable[[str, object], None]
) -> None:
    fuzz(handlers, sort, count)
    assert handlers.codes.total() >= count
    assert handlers.codes[CODE.INVALID_ARGUMENT] > count / 20, "the messages were not odd"
    assert handlers.codes[CODE.OK] > 0, "they were all odd"
    record_property("fuzzed", {code.name: count for code, count in handlers.codes.items()})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with opened(tmp_path_factory.mktemp("fuzz"), Kind(scripted=False)) as place:
        yield place


@pytest.mark.asyncio(loop_scope="module")
@settings(PATIENT, max_examples=3 * THROUGH_GRPC)
@given(example=st.one_of(*EVERYTHING.values()))
async def test_through_grpc(place: Place, example: tuple[str, bytes]) -> None:
    method, data = example
    streams = method == "GenerateStream"
    call: Any = (place.channel.unary_stream if streams else place.channel.unary_unary)(SERVICE + method)
    seen = await see(call(data))
    assert isinstance(seen.ended, CODE) and seen.ended in PROMISED_BY_THE_SERVER, seen
    if seen.refused is not None and seen.ended in PROMISED:
        check_fields(REQUESTS[method], seen.ended, seen.said, dict(seen.refused.trailing))
    SEEN[seen.ended] += 1


@pytest.mark.asyncio(loop_scope="module")
async def test_after_that_the_server_is_as_before(place: Place, record_property: Callable[[str, object], None]) -> None:
    await place.at_baseline()
    assert SEEN.total() == 0 or {CODE.OK, CODE.INVALID_ARGUMENT} <= SEEN.keys()
    record_property("fuzzed through gRPC", {code.name: count for code, count in SEEN.items()})
