"""`policy.watch`: requests before, during and after a change of weights; checkpoints that are refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.config import PolicyConfig
from bon_server.errors import ConfigError, StartupError
from bon_server.serving import server as server_module
from bon_server.serving.banner import banner
from bon_server.types import Completion, Outcome, PolicyRef, Sampling
from tests.fakes import ScriptedPolicy, named_after_index, says
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal
from tests.waiting import SOON_S, forever, until

Script = Callable[[int], Awaitable[Completion]]


@dataclass(eq=False)
class Weights(ScriptedPolicy):
    """A policy that remembers whether it was closed."""

    closed: bool = False

    async def close(self) -> None:
        """Once."""
        assert not self.closed
        self.closed = True


def weights(revision: str, script: Script = named_after_index) -> Weights:
    """A policy of this revision."""
    return Weights(script, ref=PolicyRef("scripted", revision))


@dataclass
class Loader:
    """Stands for `start_successor`: what it makes of each directory, by name."""

    outcomes: dict[str, Weights | Exception | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    pause: Callable[[], Awaitable[Any]] | None = None
    given_up: int = 0

    async def __call__(self, config: PolicyConfig, serving: object, directory: Path) -> Weights | None:
        """Loads."""
        self.asked.append(directory.name)
        try:
            if self.pause is not None:
                await self.pause()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        outcome = self.outcomes[directory.name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass
class Watching:
    """A server that watches a folder."""

    running: Running
    folder: Path
    loader: Loader

    def put(self, name: str, outcome: Weights | Exception | None) -> None:
        """A checkpoint appears whole."""
        self.loader.outcomes[name] = outcome
        fresh = self.folder / f".{name}"
        fresh.mkdir()
        (fresh / "config.json").write_text("{}")
        fresh.rename(self.folder / name)

    async def revision(self) -> str:
        """What GetServerInfo says."""
        return (await self.running.stub.GetServerInfo(pb.GetServerInfoRequest())).policy.revision

    async def loaded(self, revision: str) -> None:
        """Waits until new requests get it."""
        await until(lambda: self.running.server.policy.ref.revision == revision)
        assert await self.revision() == revision

    async def refused(self, times: int) -> None:
        """Waits until so many checkpoints were refused, and looks a few times more."""
        name = 'bon_policy_changes_total{result="refused"}'
        async with asyncio.timeout(SOON_S):
            while (await self.running.metrics()).get(name, 0) < times:  # noqa: ASYNC110 -- scraped, not notified
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (await self.running.metrics())[name] == times


@pytest.fixture
def watch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Watching]]:
    """`await watch(first policy, settings)`."""

    async def start(first: ScriptedPolicy, **settings: Any) -> Watching:
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        loader = Loader()
        monkeypatch.setattr(server_module, "start_successor", loader)
        monkeypatch.setattr(server_module, "memory_plan", lambda config: None)  # its policy has no files
        watched = {"policy.model": "scripted", "policy.watch": str(folder), "policy.watch_poll_s": 0.01}
        return Watching(await run(first, settings=watched | settings), folder, loader)

    return start


Watch = Callable[..., Awaitable[Watching]]


async def test_requests_before_during_and_after(watch: Watch) -> None:
    go_on = asyncio.Event()

    async def slow(index: int) -> Completion:
        await go_on.wait()
        return says(f"old {index}")

    old, new = weights("1", slow), weights("2")
    watching = await watch(old)
    running = watching.running
    before = running.stub.Generate(question(request_id="before", n=4))
    await until(lambda: old.running == 4)
    watching.put("step-2", new)
    await watching.loaded("2")
    after = await running.ask(request_id="after", n=4)
    assert {candidate.policy_revision for candidate in after.candidates} == {"2"} == {after.policy.revision}
    assert not old.closed, "its request still runs"
    assert await running.health() == "SERVING"
    go_on.set()
    answer = await before
    assert answer.best.text.startswith("old")
    assert {candidate.policy_revision for candidate in answer.candidates} == {"1"} == {answer.policy.revision}
    await until(lambda: old.closed)
    for request_id, revision in (("before", "1"), ("after", "2")):
        record = running.record(request_id)
        assert record.policy is not None and record.policy.revision == revision
        assert {candidate.policy_revision for candidate in record.candidates} == {revision}
        replayed = await running.ask(request_id=request_id, n=4)
        assert replayed.replayed and replayed.policy.revision == revision
    assert not new.closed


async def test_a_request_in_the_queue_gets_the_weights_of_its_turn(watch: Watch) -> None:
    go_on = asyncio.Event()

    async def slow(index: int) -> Completion:
        await go_on.wait()
        return says("old")

    old = weights("1", slow)
    watching = await watch(old, **{"limits.max_n": 4, "limits.max_candidates_in_flight": 4, "defaults.n": 4})
    running = watching.running
    first = running.stub.Generate(question(request_id="first"))
    await until(lambda: old.running == 4)
    second = running.stub.Generate(question(request_id="second"))
    await until(lambda: running.admission.queued == 4)
    watching.put("step-2", weights("2"))
    await watching.loaded("2")
    go_on.set()
    assert ((await first).policy.revision, (await second).policy.revision) == ("1", "2")


async def test_what_was_learned_of_rewards_holds_for_the_weights_they_came_from(watch: Watch) -> None:
    """Equal rewards alone say nothing, so all are sampled; beside the spread of earlier ones they say enough."""
    go_on = asyncio.Event()

    async def equal(index: int) -> Completion:
        await go_on.wait()
        return says("equal")

    old = weights("1")
    watching = await watch(old)

    async def scored(request_id: str) -> int:
        budget = pb.Budget(price_per_candidate=5.0)
        return (await watching.running.ask(request_id=request_id, n=16, budget=budget)).n_scored

    await watching.running.ask(request_id="different", n=16)
    old.script = equal
    late = asyncio.create_task(scored("known"))
    await until(lambda: old.running == 4)
    watching.put("step-2", weights("2", equal))
    await watching.loaded("2")
    go_on.set()
    assert await late == 4
    assert await scored("unknown") == 16


async def test_a_request_that_is_being_looked_at_keeps_the_policy_that_looks(watch: Watch) -> None:
    """What a policy closes is what it checks constraints with; the request goes on to the new weights."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Careful(Weights):
        async def check(self, sampling: Sampling) -> None:
            asked.set()
            await go_on.wait()
            assert not self.closed

    old = Careful(ref=PolicyRef("scripted", "1"))
    watching = await watch(old)
    answer = watching.running.stub.Generate(question(request_id="during"))
    await asked.wait()
    watching.put("step-2", weights("2"))
    await watching.loaded("2")
    assert not old.closed
    go_on.set()
    assert (await answer).policy.revision == "2"
    await until(lambda: old.closed)


async def test_replaced_weights_are_not_kept_for_ever(watch: Watch) -> None:
    async def one_ends(index: int) -> Completion:
        if index > 0:
            await forever()
        return says("old")

    old = weights("1", one_ends)
    watching = await watch(old, **{"policy.watch_drain_s": 0.05})
    running = watching.running
    late = asyncio.create_task(refusal(running.stub.Generate(question(request_id="late", n=3))))
    await until(lambda: old.running == 2)
    watching.put("step-2", weights("2"))
    refused = await late
    assert (refused.code, refused.details) == (
        grpc.StatusCode.UNAVAILABLE,
        "the weights it was sampled from were replaced",
    )
    assert refused.pushback_ms is not None
    await until(lambda: old.closed)
    again = await running.ask(request_id="late", n=3)
    assert not again.replayed and again.policy.revision == "2"
    first, second = sorted(running.records(), key=lambda record: record.attempt)
    assert (first.outcome, second.outcome) == (Outcome.FAILED, Outcome.OK)
    assert [candidate.policy_revision for candidate in first.candidates] == ["1", "1", "1"]
    assert first.candidates[0].reward is not None, "what was scored is kept"


async def test_a_bad_checkpoint_is_said_once_and_tried_again_when_it_changes(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watching = await watch(weights("1"))
    watching.put("bad", StartupError("it has no weights"))
    await watching.refused(times=1)
    assert watching.loader.asked == ["bad"]
    assert caplog.text.count("is refused, revision 1 stays in use: it has no weights") == 1
    assert await watching.revision() == "1"
    assert await watching.running.health() == "SERVING"
    assert (await watching.running.ask()).policy.revision == "1"
    watching.loader.outcomes["bad"] = weights("2")
    (watching.folder / "bad" / "model.safetensors").write_text("mended")
    await watching.loaded("2")
    metrics = await watching.running.metrics()
    assert metrics['bon_policy_changes_total{result="loaded"}'] == 1
    assert metrics['bon_policy_info{id="scripted",revision="2"}'] == 1
    assert not [name for name in metrics if name.startswith("bon_policy_info") and 'revision="1"' in name]
    assert "policy: revision 2 (scripted) replaces 1 (scripted)" in caplog.text


async def test_a_bug_while_loading_is_a_refusal_too(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    watching = await watch(weights("1"))
    watching.put("bad", ZeroDivisionError())
    await watching.refused(times=1)
    assert "a bug: ZeroDivisionError" in caplog.text
    watching.put("good", weights("2"))
    await watching.loaded("2")


async def test_of_several_the_newest_that_is_good(watch: Watch) -> None:
    watching = await watch(weights("1"), **{"policy.watch_poll_s": 0.2})
    for name, outcome in (("a", weights("2")), ("b", weights("3")), ("c", StartupError("bad"))):
        watching.put(name, outcome)
        await asyncio.sleep(0.02)
    await watching.loaded("3")
    await asyncio.sleep(0.5)
    assert watching.loader.asked == ["c", "b"]


async def test_going_back_by_pointer_and_by_removing(watch: Watch) -> None:
    watching = await watch(weights("1"))
    watching.put("a", weights("2"))
    await watching.loaded("2")
    watching.put("b", weights("3"))
    await watching.loaded("3")
    watching.loader.outcomes["a"] = weights("2")
    (watching.folder / "current").symlink_to("a")
    await watching.loaded("2")
    watching.loader.outcomes["b"] = weights("3")
    (watching.folder / "current").unlink()
    await watching.loaded("3")
    (watching.folder / "b" / "config.json").unlink()
    watching.loader.outcomes["a"] = weights("2")
    await watching.loaded("2")


async def test_what_is_being_written_is_not_touched(watch: Watch) -> None:
    watching = await watch(weights("1"), **{"policy.watch_poll_s": 0.1})
    directory = watching.folder / "growing"
    directory.mkdir()
    watching.loader.outcomes["growing"] = weights("2")
    with (directory / "model.safetensors").open("wb", buffering=0) as file:
        (directory / "config.json").write_text("{}")
        for _ in range(50):
            file.write(b"x")
            await asyncio.sleep(0.01)
        assert watching.loader.asked == []
    await watching.loaded("2")


async def test_the_same_weights_again_change_nothing(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = weights("1")
    watching = await watch(first)
    watching.put("same", None)
    await until(lambda: "has the weights in use" in caplog.text)
    await asyncio.sleep(0.1)
    assert watching.loader.asked == ["same"]
    assert watching.running.server.policy is first and not first.closed
    assert (await watching.running.metrics())['bon_policy_changes_total{result="loaded"}'] == 0


async def test_shutting_down_while_loading_and_while_the_old_one_finishes(watch: Watch) -> None:
    async def never(index: int) -> Completion:
        await forever()

    old, new = weights("1", never), weights("2")
    watching = await watch(old)
    call = watching.running.stub.Generate(question())
    await until(lambda: old.running == 4)
    watching.put("step-2", new)
    await watching.loaded("2")
    await watching.running.server.drain(0)
    assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
    await watching.running.server.stop()
    assert old.closed and new.closed


async def test_a_shutdown_gives_up_what_is_being_loaded(watch: Watch) -> None:
    watching = await watch(weights("1"))
    watching.loader.pause = forever
    watching.put("step-2", weights("2"))
    await until(lambda: watching.loader.asked == ["step-2"])
    await watching.running.server.drain(0)
    assert watching.loader.given_up == 1


async def test_nothing_new_is_taken_while_a_load_is_being_given_up(watch: Watch) -> None:
    """Ending an engine that is starting takes seconds, and a second signal stops only what runs by then."""
    gone = asyncio.Event()

    async def unwinds() -> None:
        try:
            await forever()
        finally:
            await gone.wait()

    watching = await watch(weights("1"))
    watching.loader.pause = unwinds
    watching.put("step-2", weights("2"))
    await until(lambda: watching.loader.asked == ["step-2"])
    draining = asyncio.create_task(watching.running.server.drain(0))
    async with asyncio.timeout(SOON_S):
        while await watching.running.health() == "SERVING":  # noqa: ASYNC110 -- asked, not notified
            await asyncio.sleep(0.01)
    refused = await watching.running.refused()
    assert (refused.code, refused.details) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    assert not draining.done()
    gone.set()
    await draining


async def test_the_banner_names_the_folder(watch: Watch) -> None:
    watching = await watch(weights("1"))
    assert f"watching  {watching.folder}" in banner(watching.running.server)


async def test_what_cannot_be_watched(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.watch = .*nowhere.*no such directory"):
        await run(settings={"policy.watch": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"policy\.model is synthetic"):
        await run(settings={"policy.watch": str(tmp_path)})
