"""Models with bugs, engines that die or stall, and models that must not be loaded."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bon_server.core.errors import StartupError, Unavailable, UnsupportedOption
from bon_server.core.types import Completion
from bon_server.system.telemetry import Telemetry
from tests.fakes import says
from tests.faults.asking import Asks, both, failing
from tests.faults.case import NOTHING_SAMPLED, OK, PUSHBACK, Case, Check
from tests.faults.models import INTERNAL, OPAQUE, UNAVAILABLE
from tests.faults.place import CANARY, Kind, Place, Seen, see, see_start
from tests.waiting import forever, until

# Bugs


def bugs() -> Iterator[Case]:
    """Never UNKNOWN, never the message, and never a caller who waits for ever."""
    errors = RuntimeError(CANARY), KeyError(CANARY), asyncio.CancelledError(CANARY), TimeoutError(), MemoryError()
    for error in errors:
        name = type(error).__name__
        for stage, asks, logged in (
            ("tokenising", Asks(encode=failing(error)), ()),
            ("sampling", Asks(sample=failing(error)), (_internal("failed"),)),
            ("scoring", Asks(score=failing(error)), (_internal("failed"),)),
        ):
            yield from both(f"{name} in {stage}", asks, INTERNAL, *logged, says=OPAQUE)


def _internal(status: str) -> Check:
    def holds(place: Place, seen: Seen) -> None:
        row = place.row()
        assert (row.outcome.value, row.error) == ("failed", "InternalError")
        assert CANARY not in repr([candidate.error for candidate in row.candidates])

    return Check("in the log: failed (InternalError), without the message", holds)


async def hangs_beside_others(place: Place) -> Seen:
    async def first_hangs(index: int) -> Completion:
        if len(place.policy.started) == 1:
            await forever()
        return says(f"answer {index}")

    place.policy.script = first_hangs
    hanging = place.generate(n=1, request_id="hanging")
    await until(lambda: place.policy.running == 1)
    others = await asyncio.gather(*(see(place.generate(request_id=f"{place.request_id}-{i}")) for i in range(10)))
    assert {seen.ended for seen in others} == {OK}
    hanging.cancel()
    return others[0]


# Engines


async def no_seeds(place: Place) -> Seen:
    """The policy's own word, as that of an engine that a seed would kill."""
    place.patch.setattr(place.policy, "check", failing(UnsupportedOption("sampling.seed is not available here")))
    return await see(place.generate())


async def dead(place: Place) -> Seen:
    """Of the health that a load balancer asks for."""
    place.policy.healthy = False
    await place.until_health("NOT_SERVING")
    assert place.server.broken == "the policy's engine died"
    place.policy.script = failing(Unavailable("the engine died", 2000))
    return await see(place.generate())


async def stalled(place: Place) -> Seen:
    """An engine that has work and makes no step; vLLM itself calls it healthy."""
    telemetry = Telemetry()
    place.policy.engines = (telemetry,)
    with telemetry.working():
        await place.until_health("NOT_SERVING")
        assert place.server.hung
        await place.server.drain(0)
        return await see(place.generate())


ENGINES = [
    Case(
        name="seed, where the backend cannot",
        happens=no_seeds,
        ends=grpc.StatusCode.FAILED_PRECONDITION,
        field="sampling.seed",
        checks=(NOTHING_SAMPLED,),
    ),
    Case(
        name="one candidate hangs: other requests",
        happens=hangs_beside_others,
        ends=OK,
        checks=(Check("answered", lambda place, seen: _four(seen)),),
    ),
    Case(
        name="engine dead: health says NOT_SERVING, and a call",
        happens=dead,
        ends=UNAVAILABLE,
        checks=(PUSHBACK,),
        kind=Kind(),
        ends_server=True,
    ),
    Case(
        name="engine makes no step: the watchdog says NOT_SERVING, and a call",
        happens=stalled,
        ends=UNAVAILABLE,
        checks=(PUSHBACK,),
        kind=Kind({"limits.engine_stall_s": 0.3}),
        ends_server=True,
    ),
]


def _four(seen: Seen) -> None:
    assert seen.answer.n_scored == 4


# Models that must not be loaded


@dataclass(frozen=True)
class Loads:
    """Starts another server with a model directory of these files, as policy or as reward model."""

    role: str
    files: dict[str, bytes]

    async def __call__(self, place: Place) -> Seen:
        folder = place.log.parent / f"model-{place.request_id}"
        if self.files:
            self._write(folder)
        place.patch.setenv("XDG_CACHE_HOME", str(place.log.parent / "cache"))
        models: dict[str, dict[str, Any]] = {
            "policy": {"policy.model": str(folder)},
            "reward": {"reward.models": [str(folder)]},
        }
        return await see_start(place.log.parent / "other", **models[self.role])

    def _write(self, folder: Path) -> None:
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


CONFIG = b'{"model_type": "llama"}'
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 8
BAD_MODELS: dict[str, tuple[dict[str, bytes], str]] = {
    "bad model path": ({}, "no such directory"),
    "model without weights": ({"config.json": CONFIG}, "no weights"),
    "corrupt weights": ({"config.json": CONFIG, "model.safetensors": WEIGHTS[:-1]}, "model.safetensors"),
    "pickled weights": ({"config.json": CONFIG, "pytorch_model.bin": b"\x80\x04."}, "pickled"),
    "code-carrying model": (
        {"config.json": b'{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}', "model.safetensors": WEIGHTS},
        "auto_map in config.json",
    ),
}


def loading() -> Iterator[Case]:
    """A start that fails in one sentence, naming the directory or the file."""
    for name, (files, named) in BAD_MODELS.items():
        for role in ("policy", "reward"):
            happens = Loads(role, files)
            yield Case(name=name, variant=role, happens=happens, ends=StartupError, says=(named,), kind=UNSCRIPTED)


UNSCRIPTED = Kind(scripted=False)

CASES = [*bugs(), *ENGINES, *loading()]
