"""Connections as nobody would make them, to a real `bon serve`: the port goes on, and nothing piles up.

`ODD_HTTP2_SEED=N` makes others. Every connection depends on the seed and its own number alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from bon.v1.bon_pb2_grpc import BestOfNServiceStub

from tests.faults.odd_http2 import FORGED, Connection
from tests.serving import frames
from tests.serving.guarded import Guard, shows
from tests.serving.processes import Serve
from tests.serving.running import question
from tests.waiting import SOON_S, until

logger = logging.getLogger(__name__)
logging.getLogger("hpack").setLevel(logging.WARNING)

SEED = int(os.environ.get("ODD_HTTP2_SEED", "1"))
FEW, MANY = 200, 5_000
"""Connections to each of four servers: every time, and in the long tests (20,000 in all)."""
BATCHES = 5
AT_ONCE = 16
QUIET_S = 0.05
"""How long a connection waits for its last frame to be answered, which it need not be."""
ANSWERED_S = 1.0
GROWTH_MIB = 24
"""Of memory, from the first batch to the last: pools of gRPC and of the interpreter fill while it is busy."""
OF_ITS_OWN = 4
"""Descriptors that the server opens for itself in a while, as for its log."""
PING_AT_THE_END = frames.frame(frames.PING, 0, 0, b"the end.")


@dataclass
class Target:
    """A server in a process of its own."""

    process: int
    address: str
    metrics_address: str
    output: Path
    context: ssl.SSLContext | None
    guard: Guard | None
    key: str

    @property
    def memory_mib(self) -> float:
        """Resident."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def descriptors(self) -> int:
        """Open ones."""
        return len(list(Path(f"/proc/{self.process}/fd").iterdir()))

    def metric(self, name: str) -> float:
        """As it is scraped now."""
        with urlopen(f"http://{self.metrics_address}/metrics", timeout=SOON_S) as answer:
            (line,) = (line for line in answer.read().decode().splitlines() if line.startswith(f"{name} "))
        return float(line.split()[1])

    async def ask(self) -> float:
        """An ordinary call over a connection of its own; returns the seconds it took."""
        began_s = time.monotonic()
        channel: Any = grpc.aio.insecure_channel(self.address)
        if self.guard is not None:
            channel = self.guard.channel(self.address)
        async with channel as opened:
            stub: Any = BestOfNServiceStub(opened)
            answer = await stub.Generate(question(), metadata=shows(self.key) if self.key else (), timeout=SOON_S)
        assert answer.n_scored == 4
        return time.monotonic() - began_s

    async def connect(self, sent: bytes, reset: bool) -> None:
        """Sends all of it, listens for a moment, and leaves."""
        host, _, port = self.address.rpartition(":")
        tls: dict[str, Any] = {}
        if self.context is not None:
            tls = {"ssl": self.context, "server_hostname": "localhost"}
        try:
            reader, writer = await asyncio.open_connection(host, int(port), **tls)
        except ssl.SSLError:
            return
        try:
            async with asyncio.timeout(QUIET_S):
                writer.write(sent + PING_AT_THE_END)
                received = b""
                while not received.endswith(PING_AT_THE_END[frames.PREFIX_BYTES :]) and (
                    more := await reader.read(9999)
                ):
                    received = received[-8:] + more
        except (TimeoutError, ConnectionError, ssl.SSLError):
            pass  # it is cut, or goes on waiting for more
        finally:
            if not reset:
                writer.close()
                with suppress(OSError, TimeoutError):
                    await asyncio.wait_for(writer.wait_closed(), QUIET_S)
            writer.transport.abort()


@pytest.fixture(params=["plain", "plain with keys", "TLS", "TLS with keys"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    """With synthetic models."""
    guard, options, context, key = Guard.of(tmp_path), [], None, ""
    if "keys" in request.param:
        key = guard.key()
        options += ["--api-keys", str(guard.keys)]
    if "TLS" in request.param:
        options += ["--tls-cert", str(guard.server.cert), "--tls-key", str(guard.server.key)]
        context = ssl.create_default_context(cafile=str(guard.authority.file))
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
    output = tmp_path / "output"
    with output.open("w") as file:
        serve = Serve(tmp_path, file.fileno())
        try:
            started = serve("synthetic", *options)
            ready = json.loads((tmp_path / "ready-0").read_text())
            yield Target(
                started.process.pid,
                started.address,
                ready["metrics_address"],
                output,
                context,
                guard if context is not None else None,
                key,
            )
        finally:
            serve.close()


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])])
async def test_the_port_goes_on_and_nothing_piles_up(
    target: Target, count: int, record_property: Callable[[str, object], None]
) -> None:
    await target.ask()
    descriptors, tasks = target.descriptors, target.metric("bon_event_loop_tasks")
    memory, asked = [], []
    for batch in range(BATCHES):
        await send(target, range(batch * count // BATCHES, (batch + 1) * count // BATCHES))
        asked.append(await target.ask())
        await until(lambda: target.descriptors <= descriptors + OF_ITS_OWN)
        memory.append(target.memory_mib)
    figures = f"seed {SEED}, {count} connections: {memory} MiB, {descriptors} and then {target.descriptors} descriptors"
    logger.info("%s", figures)
    record_property("odd connections", figures)
    assert max(asked) < ANSWERED_S
    assert memory[-1] - memory[0] < GROWTH_MIB
    assert target.metric("bon_listener_restarts_total") == 0
    assert target.metric("bon_attempts_in_flight") == 0
    await until(lambda: target.metric("bon_event_loop_tasks") <= tasks)
    output = target.output.read_bytes()
    assert b"Traceback" not in output
    assert FORGED not in output


async def send(target: Target, numbers: range) -> None:
    """These connections, some at once."""
    scheme = b"http" if target.context is None else b"https"
    keys = [b"Bearer " + target.key.encode(), b"Bearer nonsense", b"Bearer \xff", b"Basic x", b""] if target.key else []
    left = iter(numbers)

    async def some() -> None:
        for number in left:
            random = Random(f"{SEED} {number}")
            await target.connect(Connection(random, scheme, keys).sent(), reset=random.random() < 0.3)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
