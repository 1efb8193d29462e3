"""What the server writes on stderr: the request's id, and nothing of what was asked or answered."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import re
from collections.abc import Iterator

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.config.settings import LogFormat
from bon_server.core.errors import RewardFailed
from bon_server.core.types import Completion, Score
from bon_server.serving.telemetry.log_lines import HumanLines, JsonLines, about, set_up
from tests.fakes import ScriptedPolicy, ScriptedReward, says
from tests.serving import frames
from tests.serving.conftest import Run
from tests.serving.knocking import exchange
from tests.serving.running import Running, question, refusal

CANARY = "canary-of-content"


class Written(logging.StreamHandler[io.StringIO]):
    """Catches what would go to stderr."""

    @property
    def lines(self) -> list[str]:
        """So far."""
        return self.stream.getvalue().splitlines()


@pytest.fixture(params=LogFormat)
def written(request: pytest.FixtureRequest) -> Iterator[Written]:
    """As `bon serve` sets it up, in each format."""
    handler = Written(io.StringIO())
    handler.setFormatter(JsonLines() if request.param is LogFormat.JSON else HumanLines())
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


async def failing(text: str) -> Score:
    raise RewardFailed("the forward pass failed")


async def a_bug(text: str) -> Score:
    raise ValueError(f"cannot score {text}")


async def canary(index: int) -> Completion:
    return says(f"{CANARY} {index}")


def concerning(written: Written, request_id: str) -> list[str]:
    """Lines about an error, each of which must name the request."""
    lines = [line for line in written.lines if "internal" in line.lower() or "error " in line]
    assert lines
    for line in lines:
        if line.startswith("{"):
            assert json.loads(line)["request_id"] == request_id
        elif "bon_server" in line:
            assert line.endswith(f"[request {request_id}]")
    return lines


@pytest.mark.parametrize("reward", [failing, a_bug])
async def test_an_error_names_its_request_and_no_content(run: Run, written: Written, reward: object) -> None:
    running = await run(ScriptedPolicy(canary), ScriptedReward(reward))  # type: ignore[arg-type]
    refused = await running.refused(request_id="mine-1", text=CANARY, tags={"k": CANARY})
    assert refused.code is grpc.StatusCode.INTERNAL
    await running.at_rest()
    lines = concerning(written, "mine-1")
    assert any(refused.details.split()[2].rstrip(";") in line for line in lines), "the caller's error id is there"
    assert CANARY not in "\n".join(written.lines)


async def test_each_request_has_its_own_id(run: Run, written: Written) -> None:
    running = await run(ScriptedPolicy(canary), ScriptedReward(failing))
    stream = pb.GenerateStreamRequest(request=question(request_id="streamed", text=CANARY))
    await refusal(read(running, stream))
    await refusal(running.stub.Generate(question(text=CANARY)))
    score = pb.ScoreRequest(request_id="scored", text=CANARY, completions=[CANARY])
    assert (await refusal(running.stub.Score(score))).code is grpc.StatusCode.INTERNAL
    text = "\n".join(written.lines)
    assert "streamed" in text and "scored" in text and CANARY not in text
    assert len([line for line in written.lines if "streamed" in line]) == len(
        [line for line in written.lines if "in GenerateStream" in line]
    )


async def read(running: Running, request: pb.GenerateStreamRequest) -> None:
    async for _ in running.stub.GenerateStream(request):
        pass


def test_json_lines_hold_extras_and_tracebacks() -> None:
    record = logging.makeLogRecord(
        {"name": "n", "levelname": "ERROR", "levelno": 40, "msg": "two\nlines %s", "args": ("x",)}
    )
    record.principal = "team-a"
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["level"], line["logger"]) == ("two\nlines x", "ERROR", "n")
    assert line["principal"] == "team-a" and line["traceback"].endswith("RuntimeError: why")
    assert line["time"].endswith("+00:00") and "request_id" not in line


async def test_metadata_that_is_not_utf_8_is_not_told(
    run: Run, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("grpc._cython.cygrpc"), "filters", [])
    set_up(LogFormat.HUMAN)
    running = await run()
    odd = [*frames.of_call(b"/bon.v1.BestOfNService/Generate"), (b"authorization", CANARY.encode() + b"\xff")]
    head = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, frames.block(odd))
    assert (await exchange(running.server.address, frames.opened(head)))["grpc-status"] == "3"
    assert (await running.ask()).n_scored == 4
    assert CANARY not in "".join(written.lines)


FORGED = "x\n2026-12-01 00:00:00,000 INFO bon.audit: all is well\r\x1b[2J\x9b31m\u202e\u2028\u2066\x7f"


def test_a_value_that_is_quoted_can_neither_forge_a_line_nor_reach_the_terminal(written: Written) -> None:
    """As message, id, name of the caller, extra field, and message of an exception."""
    told = contextvars.copy_context()
    told.run(about, FORGED)
    logger = logging.getLogger("test")
    told.run(logger.warning, "refused %s", FORGED, extra={"principal": FORGED})
    try:
        raise ValueError(FORGED)
    except ValueError:
        told.run(logger.exception, "failed: %s", FORGED)
    text = written.stream.getvalue()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", text)
    own = [line for line in text.splitlines() if not line.startswith("    ")]
    assert len(own) == 2, "one line for each call; of a traceback each is indented"
    if own[0].startswith("{"):
        first = json.loads(own[0])
        assert first["message"] == f"refused {FORGED}" and first["request_id"] == first["principal"] == FORGED
    else:
        assert own[0].count("\\n2026-12-01") == 2 and own[0].endswith("\\u2066\\x7f]")
