"""The operator's redaction comes before the log; the answer is not affected, and a failed redaction is no answer."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import ConfigError, StartupError
from bon_server.core.types import Completion, Message, Prompt
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.record import prompt_hash
from tests.conftest import StartServer
from tests.fakes import ScriptedPolicy, says
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal

PHONE, HIDDEN = "555-1234", "[phone]"
HIDE = {"log.redact": "tests.serving.redactions:hide"}


async def phones(index: int) -> Completion:
    return says(f"call {PHONE}" if index % 2 else "do not call")


def on_disk(running: Running) -> bytes:
    return b"".join(file.read_bytes() for file in running.log.rglob("*") if file.is_file())


PROMPTS: dict[str, tuple[dict[str, Any], Prompt]] = {
    "text": ({"text": f"who is {PHONE}?"}, Prompt(text=f"who is {HIDDEN}?")),
    "chat": (
        {"chat": pb.Chat(messages=[pb.ChatMessage(role="user", content=PHONE)])},
        Prompt(messages=(Message("user", HIDDEN),)),
    ),
}


@pytest.mark.parametrize(("given", "logged"), PROMPTS.values(), ids=PROMPTS.keys())
async def test_every_text_is_redacted_before_the_log(run: Run, given: dict[str, Any], logged: Prompt) -> None:
    running = await run(ScriptedPolicy(phones), settings=HIDE)
    labels: dict[str, Any] = {"reward_context": {"answer": PHONE}, "tags": {"who": PHONE, "k": "v"}}
    answer = await running.ask(request_id="a", include_token_ids=True, **given, **labels)
    assert [c.text for c in answer.candidates] == ["do not call", f"call {PHONE}"] * 2
    record = running.record("a")
    assert record.prompt == logged and record.prompt_token_ids is None
    assert record.prompt_hash == prompt_hash(logged, {"answer": HIDDEN})
    assert (record.reward_context, record.tags) == ({"answer": HIDDEN}, {"who": HIDDEN, "k": "v"})
    assert [c.text for c in record.candidates] == ["do not call", f"call {HIDDEN}"] * 2
    assert [bool(c.token_ids) for c in record.candidates] == [True, False] * 2
    assert [c.reward for c in record.candidates] == [c.reward for c in answer.candidates]
    assert record.content_logged and record.request_digest == ""
    assert PHONE.encode() not in on_disk(running)


async def test_a_prompt_of_tokens_becomes_the_redacted_text(run: Run) -> None:
    """The synthetic policy's tokens are bytes."""
    running = await run(settings=HIDE)
    for request_id, text in (("a", f"who is {PHONE}?"), ("b", "who are you?")):
        await running.ask(request_id=request_id, tokens=pb.Tokens(ids=list(text.encode())))
    changed, same = running.record("a"), running.record("b")
    assert (changed.prompt_text, changed.prompt_token_ids) == (f"who is {HIDDEN}?", None)
    assert (same.prompt_text, same.prompt_token_ids) == (None, tuple(b"who are you?"))
    assert same.request_digest and PHONE.encode() not in on_disk(running)


async def test_what_was_redacted_cannot_be_replayed_and_the_rest_can(run: Run) -> None:
    policy = ScriptedPolicy(phones)
    running = await run(policy, settings=HIDE)
    await running.ask(request_id="changed")
    assert (await running.refused(request_id="changed")).code is grpc.StatusCode.ALREADY_EXISTS
    policy.script = ScriptedPolicy().script
    first = await running.ask(request_id="same", include_token_ids=True)
    again = await running.ask(request_id="same", include_token_ids=True)
    assert again.replayed and again.best == first.best and first.best.token_ids


async def test_given_completions_and_feedback(run: Run) -> None:
    running = await run(settings=HIDE)
    answer = await running.stub.Score(pb.ScoreRequest(request_id="a", text="q", completions=[PHONE, "x"]))
    assert [c.text for c in answer.candidates] == [PHONE, "x"]
    assert [c.text for c in running.record("a").candidates] == [HIDDEN, "x"]
    feedback = pb.RecordFeedbackRequest(
        feedback_id="f", request_id="a", name="said", string_value=PHONE, tags={"by": PHONE}
    )
    await running.stub.RecordFeedback(feedback)
    assert (await running.stub.RecordFeedback(feedback)).replayed
    with FeedbackReader(running.log) as reader:
        assert [(one.value, one.tags) for one in reader.all()] == [(HIDDEN, {"by": HIDDEN})]
    assert PHONE.encode() not in on_disk(running)


async def test_metadata_only_has_redacted_tags(run: Run) -> None:
    running = await run(ScriptedPolicy(phones), settings=HIDE)
    await running.ask(request_id="a", tags={"who": PHONE}, log_policy=pb.LOG_POLICY_METADATA_ONLY)
    record = running.record("a")
    assert record.tags == {"who": HIDDEN} and not record.content_logged
    assert PHONE.encode() not in on_disk(running)


FAILING = ["breaks", "stops", "gives_none", "interrupts", "gives_up", "exits", "hangs", "backtracks", "halves"]


@pytest.mark.parametrize("name", FAILING)
async def test_a_redaction_that_fails_fails_the_request(run: Run, name: str, caplog: pytest.LogCaptureFixture) -> None:
    running = await run(settings={"log.redact": f"tests.serving.redactions:{name}", "log.redact_timeout_s": 0.3})
    for call in (
        running.stub.Generate(question(text=PHONE)),
        running.stub.Score(pb.ScoreRequest(text=PHONE, completions=["x"])),
    ):
        refused = await refusal(call)
        assert refused.code is grpc.StatusCode.INTERNAL
        assert PHONE not in refused.everything_said
    assert running.records() == [] and PHONE not in caplog.text
    assert PHONE.encode() not in on_disk(running)
    await running.at_rest()
    if name in ("breaks", "hangs", "backtracks"):
        assert (await running.ask(text="harmless")).n_scored == 4
        feedback = pb.RecordFeedbackRequest(request_id=running.records()[0].request_id, name="said", string_value=PHONE)
        assert (await refusal(running.stub.RecordFeedback(feedback))).code is grpc.StatusCode.INTERNAL
        with FeedbackReader(running.log) as reader:
            assert reader.count() == 0


@pytest.mark.parametrize(
    ("spec", "kind", "problem"),
    [
        ("redact", ConfigError, "expected module:function"),
        ("a:b:c", ConfigError, "expected module:function"),
        ("nowhere_at_all:f", StartupError, "there is no module nowhere_at_all"),
        ("tests.serving.redactions:nothing", StartupError, "'nothing' is not a plain function"),
        ("tests.serving.redactions:CONSTANT", StartupError, "'CONSTANT' is not a plain function"),
        ("tests.serving.redactions:waits", StartupError, "'waits' is not a plain function"),
        ("tests.serving.redactions:takes_none", StartupError, "it must take one text"),
    ],
)
async def test_a_server_without_its_redaction_does_not_start(
    start_server: StartServer, spec: str, kind: type[Exception], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        await start_server(**{"log.redact": spec})
