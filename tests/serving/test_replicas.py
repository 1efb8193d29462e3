"""Two servers behind a client that balances between them; one is killed. As docs/scaling.md has it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import bon
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.selection import OfflineRule
from bon_server.log.read.reader import LogReader
from bon_server.log.verify.verify import verify
from bon_server.offline.select.options import Filters
from bon_server.offline.select.select import SelectOptions, select
from tests.waiting import until

pytestmark = pytest.mark.slow

START_S = 60.0
REQUESTS, N = 120, 4


class Replica:
    """A server as a process, with a log of its own, publishing to a common table."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / name
        self.table = folder / "table"
        self._ready = folder / f"{name}.ready"

    def start(self) -> None:
        """Starts it, again if need be."""
        self._ready.unlink(missing_ok=True)
        words = ["-m", "bon_server.cli", "serve", "--policy", "synthetic:tokens_per_s=400,tokens=40"]
        words += ["--reward", "synthetic", "--log", str(self.log), "--publish", self.table.as_uri()]
        words += ["--port", "0", "--metrics-port", "0", "--ready-file", str(self._ready)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BON_")}
        self.process = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)

    async def address(self) -> str:
        """Once it answers."""
        await until(self._ready.exists, START_S)
        address: str = json.loads(self._ready.read_text())["address"]
        return address

    async def end(self, number: signal.Signals) -> int:
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, START_S)

    def logged(self) -> set[str]:
        """Request ids of its own log."""
        with LogReader(self.log) as reader:
            return {record.request_id for record in reader.records()}


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    """Two that are starting."""
    pair = Replica(tmp_path, "a"), Replica(tmp_path, "b")
    for replica in pair:
        replica.start()
    yield pair
    for replica in pair:
        replica.process.kill()
        replica.process.wait()


async def test_one_of_two_is_killed_and_every_request_is_answered_and_counted_once(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    first, second = replicas
    target = f"ipv4:{await first.address()},{await second.address()}"
    async with bon.AsyncClient(target, options={"grpc.lb_policy_name": "round_robin"}) as client:
        busy = asyncio.Semaphore(16)

        async def ask(number: int) -> pb.GenerateResponse:
            async with busy:
                if number == REQUESTS // 2:
                    first.process.kill()  # while others are being answered
                return await client.generate(f"prompt {number}", n=N, request_id=f"r{number}")

        answers = await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
    assert {answer.request_id for answer in answers} == {f"r{number}" for number in range(REQUESTS)}
    assert first.process.wait() == -signal.SIGKILL
    first.start()
    address = await first.address()
    await ask_again("r7", address, await second.address())
    assert [await replica.end(signal.SIGTERM) for replica in replicas] == [0, 0]
    assert len(first.logged()) > REQUESTS // 16 and len(second.logged()) > REQUESTS // 2, "both took their share"
    counts = published(tmp_path / "table")
    assert set(counts) == {f"r{number}" for number in range(REQUESTS)}
    assert counts["r7"] == 2, "idempotency is each replica's own"
    everything = Filters(keep_truncated=True)
    options = SelectOptions((tmp_path / "table",), OfflineRule.BEST_PER_PROMPT, tmp_path / "out", filters=everything)
    manifest = select(options)
    assert manifest["counts"]["selected"] == manifest["counts"]["prompts"] == REQUESTS
    assert manifest["counts"]["eligible"] == REQUESTS * N
    assert manifest["counts"]["dropped"] == {"repeated_request": N * (counts.total() - REQUESTS)}


async def ask_again(request_id: str, *addresses: str) -> None:
    """The same request of each replica: the one that answered it replays it, the other samples it again."""
    replayed = []
    for address in addresses:
        async with bon.AsyncClient(address) as client:
            answer = await client.generate(f"prompt {request_id[1:]}", n=N, request_id=request_id)
            replayed.append(answer.replayed)
    assert sorted(replayed) == [False, True]


def published(table: Path) -> Counter[str]:
    """How often each request is in the table."""
    assert verify(table)["ok"]
    with LogReader(table) as reader:
        return Counter(record.request_id for record in reader.records())
