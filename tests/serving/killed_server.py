"""Kills whole servers under load at random moments. Run as `-m tests.serving.killed_server FOLDER KILLS SEED`.

Each life is a real `bon serve` with synthetic models on the same log. Clients know their request ids; whatever was in
flight at a kill is asked again, under the same id, in the next life, and so is some of what was acknowledged long ago.
The log is held against what clients were told every hundred kills and at the end. Prints one JSON document; an
AssertionError is the failure.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import aclosing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import bon
import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.log.reader import LogReader
from bon_server.log.verify import verify
from bon_server.soak.ledger import Ledger
from bon_server.soak.logged import compare
from tests.serving import forked_server

CALLERS = 16
MODELS = ("--policy", "synthetic:tokens=20,tokens_per_s=400", "--reward", "synthetic:seconds=0.002")
START_S = 120.0
"""Longest start, on a machine with other things to do."""
SHARE_STARTING = 0.2
"""Of the kills, those before the server answers."""
LONGEST_LIFE_S = 0.3
"""After it answers."""
SEALING_EVERY, LONGEST_SEALING_LIFE_S = 5, 1.5
"""Each so many lives one that seals, and lives as long as that takes."""
CHECK_EVERY = 100
Question = dict[str, Any]


class Lives:
    """Servers one after the other, and what their clients know."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._dice = random.Random(seed)
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(list(forked_server.NEEDED))
        self._ready = folder / "ready.json"
        self._start_s = 0.5
        self._plan: tuple[int, int] | None = None
        """Of the last sealing that was cut off."""
        self.log = folder / "log"
        self.ledger = Ledger("killed")
        self.in_doubt: list[Question] = []
        """In flight when the server was killed, and not asked again yet."""
        self.counts: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    async def one(self, number: int) -> None:
        """Starts a server, lets it work, and kills it with all of its process group."""
        seals = number % SEALING_EVERY == 0
        began_s = time.monotonic()
        process = self._start(seals)
        if self._dice.random() < SHARE_STARTING:
            await asyncio.sleep(self._dice.uniform(0.0, self._start_s))
            self.counts["killed_while_starting"] += not self._ready.exists()
            await self._kill(process)
            return
        address = await self._until_ready(process)
        self._start_s = time.monotonic() - began_s
        async with _client(address) as client:
            callers = [asyncio.create_task(self._call(client, repeats=i == 0)) for i in range(CALLERS)]
            await asyncio.sleep(self._dice.uniform(0.0, LONGEST_SEALING_LIFE_S if seals else LONGEST_LIFE_S))
            await self._kill(process)
            await asyncio.gather(*callers)
        with LogReader(self.log) as reader:
            self.counts["killed_while_sealing"] += reader.plan not in (None, self._plan)
            self._plan = reader.plan

    async def last(self) -> None:
        """A server that lives until everything that was in doubt is answered, and ends as it should."""
        process = self._start(seals=False)
        async with _client(await self._until_ready(process)) as client:
            while self.in_doubt:
                await self._ask(client, self.in_doubt.pop())
            for request_id in self._dice.sample(sorted(self.ledger.acknowledged), 20):
                await self._repeat(client, request_id)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.to_thread(process.join, START_S)
        assert process.exitcode == 0, self._said()

    def check(self) -> None:
        """The log has every acknowledged answer once, and nothing twice."""
        differences = compare(self.log, self.ledger)
        assert not differences.missing, f"acknowledged and lost: {differences.missing[:5]}"
        assert not differences.changed, f"acknowledged with another winner: {differences.changed[:5]}"
        assert not differences.doubled, f"doubled: {differences.doubled[:5]}"
        assert not self.ledger.contradictions, f"sampled again or changed: {self.ledger.contradictions[:5]}"
        assert set(self.codes) <= {"UNAVAILABLE"}, self.codes
        self.counts["found"] = differences.answered

    def _start(self, seals: bool) -> BaseProcess:
        self._ready.unlink(missing_ok=True)
        words = [*MODELS, "--log", str(self.log), "--port", "0", "--metrics-port", "0"]
        words += ["--ready-file", str(self._ready), *(("--set", "log.seal_bytes=20000") if seals else ())]
        process = self._fork.Process(target=forked_server.serve, args=(words, self._folder / "output"))
        process.start()
        return process

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
        if repeats and self.ledger.acknowledged:
            await self._repeat(client, self._dice.choice(list(self.ledger.acknowledged)))
        while await self._ask(client, self.in_doubt.pop() if self.in_doubt else self._question()):
            pass

    async def _ask(self, client: bon.AsyncClient, question: Question) -> bool:
        """False: there was no answer; it is in doubt whether there will be one in the log."""
        try:
            answer = await self._send(client, question)
        except grpc.RpcError as error:
            self.codes[error.code().name] += 1
            self.counts["in_doubt"] += 1
            self.in_doubt.append(question)
            return False
        self.counts["replayed_in_doubt"] += answer.replayed
        self.ledger.answered(answer)
        return True

    async def _repeat(self, client: bon.AsyncClient, request_id: str) -> None:
        """An acknowledged request again: the same answer, which is not sampled."""
        try:
            answer = await self._send(client, _question(request_id))
        except grpc.RpcError as error:
            self.codes[error.code().name] += 1
            return
        assert answer.replayed, f"{request_id} was acknowledged, and now sampled again"
        self.counts["replayed_acknowledged"] += 1
        self.ledger.answered(answer)

    async def _send(self, client: bon.AsyncClient, question: Question) -> pb.GenerateResponse:
        """By either method, whatever the one before was: an id belongs to a request, not to a method."""
        if self._dice.random() < 0.5:
            return await client.generate(**question)
        async with aclosing(client.generate_stream(**question)) as events:
            return [event.final async for event in events][-1]

    def _question(self) -> Question:
        return _question(self.ledger.new_id())

    def _said(self) -> str:
        return (self._folder / "output").read_text(encoding="utf-8", errors="replace")[-3000:]


def _question(request_id: str) -> Question:
    """Nothing but the id decides what is asked."""
    return {"prompt": f"question {request_id}", "request_id": request_id, "n": 4}


def _client(address: str) -> bon.AsyncClient:
    return bon.AsyncClient(address, attempts=1, options={"grpc.use_local_subchannel_pool": 1})


async def run(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """One log, that many servers, and one more."""
    began_s = time.monotonic()
    lives = Lives(folder, seed)
    for number in range(1, kills + 1):
        await lives.one(number)
        if number % CHECK_EVERY == 0:
            lives.check()
            sys.stderr.write(f"{number} kills, {len(lives.ledger.acknowledged)} acknowledged\n")
    await lives.last()
    lives.check()
    report = verify(lives.log)
    assert report["ok"], report["problems"][:5]
    counts = {**lives.counts, "acknowledged": len(lives.ledger.acknowledged), "segments": report["segments"]}
    return {**counts, "seconds": round(time.monotonic() - began_s, 1)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))))
