"""Feedback: on disk before the answer, once, about a request of the same caller."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import apsw
import bon
import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import LogError, SamplingFailed
from bon_server.core.types import Completion
from bon_server.log.feedback import Feedback
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.stats import log_stats
from tests.command import run_bon
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.running import Running, refusal


def observation(**fields: Any) -> pb.RecordFeedbackRequest:
    if not {"bool_value", "double_value", "string_value"} & fields.keys():
        fields["bool_value"] = True
    return pb.RecordFeedbackRequest(**({"feedback_id": "f", "request_id": "a", "name": "thumbs_up"} | fields))


def logged(running: Running) -> list[Feedback]:
    with FeedbackReader(running.log) as reader:
        return list(reader.all())


VALUES: list[dict[str, Any]] = [
    {"bool_value": True},
    {"bool_value": False},
    {"double_value": -0.5},
    {"double_value": 0.0},
    {"string_value": "better: שלום 👩‍🚀\0"},
    {"string_value": ""},
]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("index", [None, 0, 3])
async def test_what_was_observed_is_logged(run: Run, value: dict[str, Any], index: int | None) -> None:
    running = await run()
    await running.ask(request_id="a")
    request = observation(candidate_index=index, tags={"by": "me"}, **value)
    answer = await running.stub.RecordFeedback(request)
    assert (answer.feedback_id, answer.replayed) == ("f", False)
    (got,) = logged(running)
    assert (got.feedback_id, got.request_id, got.attempt, got.candidate_index) == ("f", "a", 1, index)
    (expected,) = value.values()
    assert (got.name, got.value, got.tags) == ("thumbs_up", expected, {"by": "me"})
    assert type(got.value) is type(expected)


async def test_the_same_again_is_one_observation(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    await running.stub.RecordFeedback(observation())
    assert (await running.stub.RecordFeedback(observation())).replayed
    answers = await asyncio.gather(*(running.stub.RecordFeedback(observation(feedback_id="g")) for _ in range(8)))
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 7
    assert len(logged(running)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"bool_value": False},
        {"double_value": 1.0},
        {"request_id": "b"},
        {"candidate_index": 0},
        {"name": "other"},
        {"tags": {"a": "b"}},
    ],
    ids=str,
)
async def test_another_observation_of_that_id_is_refused(run: Run, change: dict[str, Any]) -> None:
    running = await run()
    await running.ask(request_id="a")
    await running.ask(request_id="b")
    await running.stub.RecordFeedback(observation())
    refused = await refusal(running.stub.RecordFeedback(observation(**change)))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert len(logged(running)) == 1 and running.server.broken is None


async def test_an_unknown_request(run: Run) -> None:
    running = await run()
    refused = await refusal(running.stub.RecordFeedback(observation()))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert logged(running) == []


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no candidate": ({"candidate_index": 4}, "candidate_index", "4 is not from 0 to 3"),
    "candidate far out": ({"candidate_index": 2**32 - 1}, "candidate_index", "is not from 0 to 3"),
    "NaN": ({"double_value": math.nan}, "double_value", "nan is not finite"),
    "infinity": ({"double_value": -math.inf}, "double_value", "-inf is not finite"),
    "no request": ({"request_id": ""}, "request_id", "empty"),
    "odd request": ({"request_id": "ä"}, "request_id", "A-Z a-z 0-9"),
    "odd id": ({"feedback_id": "a b"}, "feedback_id", "A-Z a-z 0-9"),
    "long id": ({"feedback_id": "a" * 129}, "feedback_id", "129"),
    "no name": ({"name": ""}, "name", "1 to 64"),
    "long name": ({"name": "canary" * 11}, "name", "66"),
    "long text": ({"string_value": "canary" * 11_000}, "string_value", "66000"),
    "long tag": ({"tags": {"k": "canary" * 50}}, "tags['k']", "300"),
    "too many tags": ({"tags": {str(i): "" for i in range(17)}}, "tags", "17"),
}


@pytest.mark.parametrize(("fields", "field", "problem"), BAD.values(), ids=BAD.keys())
async def test_bad_fields(run: Run, fields: dict[str, Any], field: str, problem: str) -> None:
    running = await run()
    await running.ask(request_id="a")
    refused = await refusal(running.stub.RecordFeedback(observation(**fields)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in refused.violations[field]
    assert "canary" not in refused.everything_said
    assert logged(running) == []


async def test_no_value(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    refused = await refusal(running.stub.RecordFeedback(pb.RecordFeedbackRequest(request_id="a", name="n")))
    assert refused.violations.keys() == {"value"}


async def test_no_answer_before_it_is_on_disk(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    with running.slow_disk():
        call = running.stub.RecordFeedback(observation())
        await asyncio.sleep(0.2)
        assert not call.done() and logged(running) == []
    assert not (await call).replayed
    assert len(logged(running)) == 1


async def test_a_full_disk(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    writer: Any = running.server.spool._writer
    writer._database.pragma("max_page_count", writer._database.pragma("page_count"))
    refused = await refusal(running.stub.RecordFeedback(observation(string_value="long " * 10_000)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    writer._database.pragma("max_page_count", 1_000_000)
    assert not (await running.stub.RecordFeedback(observation(string_value="long " * 10_000))).replayed


async def test_it_is_about_the_attempt_that_was_the_latest(run: Run) -> None:
    async def fail(index: int) -> Completion:
        raise SamplingFailed("engine error")

    policy = ScriptedPolicy(fail)
    running = await run(policy)
    await running.refused(request_id="a")
    await running.stub.RecordFeedback(observation(feedback_id="first"))
    policy.script = ScriptedPolicy().script
    await running.ask(request_id="a")
    await running.stub.RecordFeedback(observation(feedback_id="second"))
    with FeedbackReader(running.log) as reader:
        about = [[one.feedback_id for one in reader.of(record)] for record in running.records()]
    assert about == [["first"], ["second"]]


async def test_both_clients(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    async with bon.AsyncClient(running.server.address) as client:
        first = await client.feedback("a", "rating", 4.5, candidate_index=1)
        assert (await client.feedback("a", "rating", 4.5, candidate_index=1, feedback_id=first.feedback_id)).replayed

    def blocking() -> None:
        with bon.Client(running.server.address) as client:
            assert not client.feedback("a", "good", False, tags={"k": "v"}).replayed
            assert not client.record_feedback("a", "said", "text").replayed

    await asyncio.to_thread(blocking)
    assert [(one.name, one.value) for one in logged(running)] == [("rating", 4.5), ("good", False), ("said", "text")]


async def test_records_and_stats_show_it(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    await running.ask(request_id="b")
    await running.stub.RecordFeedback(observation(candidate_index=2, double_value=1.0))
    await running.stub.RecordFeedback(observation(feedback_id="g", string_value="why"))
    assert log_stats(running.log)["feedback"] == 2
    arguments = ["log", "records", "--log", str(running.log)]
    joined = await asyncio.to_thread(run_bon, *arguments, "--feedback")
    plain = await asyncio.to_thread(run_bon, *arguments)
    first, second = (json.loads(line) for line in joined.stdout.splitlines())
    assert [(one["value"], one["candidate_index"]) for one in first["feedback"]] == [(1.0, 2), ("why", None)]
    assert second["feedback"] == []
    assert "feedback" not in json.loads(plain.stdout.splitlines()[0])


async def test_damage_is_named(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    await running.stub.RecordFeedback(observation())
    database = apsw.Connection(str(running.log / "spool.sqlite"))
    database.execute("UPDATE feedback SET feedback = zeroblob(length(feedback))")
    database.close()
    with pytest.raises(LogError, match="feedback 1 is damaged"):
        logged(running)


async def test_a_log_of_an_earlier_version_has_none(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    await running.server.drain(1)
    await running.server.stop()
    database = apsw.Connection(str(running.log / "spool.sqlite"))
    database.execute("DROP TABLE feedback; DROP TABLE imported; PRAGMA user_version = 1")
    database.close()
    assert log_stats(running.log)["feedback"] == 0
    running = await run()
    await running.stub.RecordFeedback(observation())
    assert log_stats(running.log)["feedback"] == 1
