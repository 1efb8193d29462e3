"""Kills whole servers under load at random moments. Run as `-m tests.serving.killed_server KILLS SEED`.

Each life is a real `bon serve` with synthetic models on the same log, which seals, publishes to a folder and removes
what is old meanwhile. Clients ask, give feedback, and know their ids; whatever was in flight at a kill is asked again,
under the same id, in the next life, and so is some of what was acknowledged long ago. `killed_log.py` holds the log
against what clients were told. The kills are shared out over the durabilities, in batches of at most `BATCH` on a fresh
log each. Prints one JSON document; an AssertionError is the failure.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import bon
import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Durability
from tests.serving import forked_server
from tests.serving.killed_log import KilledLog, State, Told

CALLERS = 16
MODELS = ("--policy", "synthetic:tokens=20,tokens_per_s=400", "--reward", "synthetic:seconds=0.002")
START_S = 120.0
"""Longest start, on a machine with other things to do."""
SHARE_STARTING = 0.2
"""Of the kills, those before the server answers."""
LONGEST_LIFE_S = 0.3
"""After it answers."""
SEALING_EVERY, LONGEST_SEALING_LIFE_S = 4, 3.0
"""Each so many lives one that seals, and lives as long as that takes."""
SEAL_BYTES = 60_000
LEAST_RETAINED = 0.8
"""Of the sealed bytes, in lives that do not seal: so a file is gone in a later life than it came in, and
`KilledLog.keep` has seen it."""
REPLAY_WINDOW = timedelta(seconds=60)
"""Longer than a caller waits to ask again what was in flight; shorter than a batch."""
SHARE_OBSERVED = 0.2
"""Of the answers, those that get feedback."""
RECENT = 200
"""Of the acknowledged requests, those that have hardly expired yet."""
CHECK_EVERY = 25
BATCH = 300
Question = dict[str, Any]
Observation = dict[str, Any]


class Lives:
    """Servers one after the other on one log, and what their clients know."""

    def __init__(self, folder: Path, durability: Durability, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._durability = durability
        self._dice = random.Random(seed)
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(list(forked_server.NEEDED))
        self._ready = folder / "ready.json"
        self._start_s = 0.5
        self._state = State()
        """As the last kill left it."""
        self._log = KilledLog(folder, REPLAY_WINDOW)
        self._told = Told()
        self._in_doubt: list[Question] = []
        """In flight when the server was killed, and not asked again yet."""
        self._feedback_in_doubt: list[Observation] = []
        self._ids = 0
        self.counts: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()

    async def one(self, number: int) -> None:
        """Starts a server, lets it work, and kills it with all of its process group."""
        seals = number % SEALING_EVERY == 0
        began_s = time.monotonic()
        process = self._start(seals)
        if self._dice.random() < SHARE_STARTING:
            await asyncio.sleep(self._dice.uniform(0.0, self._start_s))
            self.counts["killed_while_starting"] += not self._ready.exists()
            await self._kill(process)
        else:
            address = await self._until_ready(process)
            self._start_s = time.monotonic() - began_s
            async with _client(address) as client:
                callers = [asyncio.create_task(self._call(client, repeats=i == 0)) for i in range(CALLERS)]
                await asyncio.sleep(self._dice.uniform(0.0, LONGEST_SEALING_LIFE_S if seals else LONGEST_LIFE_S))
                await self._kill(process)
                await asyncio.gather(*callers)
        self._look()

    async def last(self) -> None:
        """A server that lives until everything that was in doubt is answered, and ends as it should."""
        process = self._start(seals=False)
        async with _client(await self._until_ready(process)) as client:
            while self._in_doubt:
                assert await self._ask(client, self._in_doubt.pop()), self._said()
            while self._feedback_in_doubt:
                assert await self._observe(client, self._feedback_in_doubt.pop()), self._said()
            answered = sorted(self._told.answers)
            for request_id in self._dice.sample(answered, min(20, len(answered))):
                await self._repeat(client, request_id)
                assert await self._observe(client, self._observation(_question(request_id))), self._said()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.to_thread(process.join, START_S)
        assert process.exitcode == 0, self._said()
        self._look()
        self._log.check_published(self._state)

    def check(self) -> None:
        """Holds the log against what clients were told."""
        assert set(self._codes) <= {"UNAVAILABLE"}, self._codes
        found = self._log.check(self._told)
        self.counts["checks"] += 1
        for name, count in found.items():
            self.counts[name] = count

    def _look(self) -> None:
        """What the kill met, by what the catalog and the folders show; and keeps the files that may go next."""
        before, now = self._state, self._log.state()
        self._log.keep(now)
        self.counts["killed_while_sealing"] += now.plan not in (None, before.plan)
        self.counts["killed_before_all_was_published"] += {one.file for one in now.segments} > set(now.published)
        self.counts["lives_that_published"] += len(now.published) > len(before.published)
        self.counts["lives_that_expired"] += len(now.expired) > len(before.expired)
        half = [file for file in now.expired if (self._log.folder / file).exists()]
        self.counts["killed_while_expiring"] += bool(half)
        self._state = now

    def _start(self, seals: bool) -> BaseProcess:
        self._ready.unlink(missing_ok=True)
        settings = {
            "log.durability": self._durability,
            "log.replay_window_s": REPLAY_WINDOW.total_seconds(),
            **({"log.seal_bytes": SEAL_BYTES} if seals else self._retention()),
        }
        words = [*MODELS, "--log", str(self._log.folder), "--publish", self._log.published.as_uri()]
        words += ["--port", "0", "--metrics-port", "0", "--ready-file", str(self._ready)]
        words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        process = self._fork.Process(target=forked_server.serve, args=(words, self._folder / "output"))
        process.start()
        return process

    def _retention(self) -> dict[str, int]:
        """Feedback stays until all records of its day have gone, so its size must not count against theirs."""
        sizes = Counter[str]()
        for one in self._state.segments:
            sizes[one.file.partition("/")[0]] += one.bytes
        share = self._dice.uniform(LEAST_RETAINED, 1.0)
        return {"log.retain_bytes": round(share * sizes["segments"]) + sizes["feedback"]} if sizes["segments"] else {}

    async def _until_ready(self, process: BaseProcess) -> str:
        give_up_s = time.monotonic() + START_S
        while not self._ready.exists():
            assert process.is_alive() and time.monotonic() < give_up_s, self._said()
            await asyncio.sleep(0.002)
        address: str = json.loads(self._ready.read_bytes())["address"]
        return address

    async def _kill(self, process: BaseProcess) -> None:
        assert process.pid is not None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # so young that it has no group yet
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.join)
        assert process.exitcode == -signal.SIGKILL, f"it ended by itself: {self._said()}"
        self.counts["kills"] += 1

    async def _call(self, client: bon.AsyncClient, repeats: bool) -> None:
        """One client, until the server is gone."""
        if repeats and self._told.answers:
            told = list(self._told.answers)
            for request_id in (self._dice.choice(told[-RECENT:]), self._dice.choice(told)):
                await self._repeat(client, request_id)
        if self._feedback_in_doubt and not await self._observe(client, self._feedback_in_doubt.pop()):
            return
        while await self._ask(client, question := self._in_doubt.pop() if self._in_doubt else self._question()):
            if self._dice.random() < SHARE_OBSERVED and not await self._observe(client, self._observation(question)):
                return

    async def _ask(self, client: bon.AsyncClient, question: Question) -> bool:
        """False: there was no answer; it is in doubt whether there will be one in the log."""
        try:
            answer = await self._send(client, question)
        except grpc.RpcError as error:
            self._codes[error.code().name] += 1
            self.counts["in_doubt"] += 1
            self._in_doubt.append(question)
            return False
        self.counts["replayed_in_doubt"] += answer.replayed
        self._told.answered(answer)
        return True

    async def _observe(self, client: bon.AsyncClient, observation: Observation) -> bool:
        """False: it was not acknowledged, and will be sent again."""
        try:
            await client.feedback(**observation)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                self._told.unknown.append(observation["request_id"])
                return True
            self._codes[error.code().name] += 1
            self._feedback_in_doubt.append(observation)
            self.counts["feedback_in_doubt"] += 1
            return False
        self._told.feedback.add(observation["feedback_id"])
        return True

    async def _repeat(self, client: bon.AsyncClient, request_id: str) -> None:
        """An acknowledged request again. `KilledLog.check` judges whether it might be sampled again."""
        try:
            answer = await self._send(client, _question(request_id))
        except grpc.RpcError as error:
            self._codes[error.code().name] += 1
            return
        self.counts["replayed_acknowledged" if answer.replayed else "repeated_too_late_for_a_replay"] += 1
        self._told.answered(answer)

    async def _send(self, client: bon.AsyncClient, question: Question) -> pb.GenerateResponse:
        """By either method, whatever the one before was: an id belongs to a request, not to a method."""
        if self._dice.random() < 0.5:
            return await client.generate(**question)
        async with aclosing(client.generate_stream(**question)) as events:
            return [event.final async for event in events][-1]

    def _question(self) -> Question:
        return _question(self._new_id())

    def _observation(self, question: Question) -> Observation:
        about = {"request_id": question["request_id"], "feedback_id": self._new_id()}
        return {**about, "name": "rating", "value": self._dice.random()}

    def _new_id(self) -> str:
        self._ids += 1
        return f"killed-{self._ids}"

    def _said(self) -> str:
        return (self._folder / "output").read_text(encoding="utf-8", errors="replace")[-3000:]


def _question(request_id: str) -> Question:
    """Nothing but the id decides what is asked."""
    return {"prompt": f"question {request_id}", "request_id": request_id, "n": 4}


def _client(address: str) -> bon.AsyncClient:
    return bon.AsyncClient(address, attempts=1, options={"grpc.use_local_subchannel_pool": 1})


async def run(folder: Path, durability: Durability, kills: int, seed: int) -> Counter[str]:
    """One log, that many servers, and one more."""
    lives = Lives(folder, durability, seed)
    for number in range(1, kills + 1):
        await lives.one(number)
        if number % CHECK_EVERY == 0:
            lives.check()
    await lives.last()
    lives.check()
    return lives.counts


def batches(kills: int, seed: int) -> Iterator[tuple[Durability, int, int]]:
    """Durability, kills and seed of each, the durabilities in turn: whenever it is stopped, each had its share."""
    left = {durability: len(range(i, kills, len(Durability))) for i, durability in enumerate(Durability)}
    while any(left.values()):
        for durability, number in left.items():
            if batch := min(number, BATCH):
                yield durability, batch, (seed := seed + 1)
                left[durability] -= batch


def main(kills: int, seed: int) -> None:
    """All batches; each says on stderr how it went. The log of one that fails stays, and the message names it."""
    began_s = time.monotonic()
    by_durability: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for durability, batch, batch_seed in batches(kills, seed):
        folder = Path(tempfile.mkdtemp(prefix="bon-kills-"))
        sys.stderr.write(f"{durability}: {batch} kills, seed {batch_seed}, in {folder}\n")
        counts = asyncio.run(run(folder, durability, batch, batch_seed))
        shutil.rmtree(folder)
        by_durability[durability] += counts["kills"]
        totals += counts
        sys.stderr.write(f"{durability}: {dict(counts)}\n")
    seconds = round(time.monotonic() - began_s, 1)
    sys.stdout.write(json.dumps({"kills_by_durability": by_durability, **totals, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
