"""`policy.watch`: which checkpoints are taken, which are refused, and shutting down meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import grpc
import pytest

from bon_server.core.errors import ConfigError, StartupError
from bon_server.core.types import Completion
from bon_server.serving.lifecycle.signals import banner
from tests.serving.conftest import Run
from tests.serving.running import question, refusal
from tests.serving.watching import Watch, weights
from tests.waiting import SOON_S, forever, until


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
        time.sleep(0.02)  # noqa: ASYNC251 -- times that differ, and nobody who looks in between
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
