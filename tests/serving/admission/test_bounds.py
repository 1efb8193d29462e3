"""What callers can make the server hold is bounded: bytes of messages, connections, calls that never send, feedback."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.log.spool.lookup import Logged, Lookup
from bon_server.log.spool.spool import Spool
from bon_server.serving.admission.descriptors import FEWEST_CONNECTIONS, OWN_FILES
from bon_server.serving.admission.receiving import Room
from bon_server.serving.rpc.feedback import MOST_WAITING, THREADS
from tests.conftest import StartServer
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.guarded import Guard, shows
from tests.serving.knocking import PREFACE
from tests.serving.processes import START_S, Serve, command, environment
from tests.serving.running import GENERATE, Running, question, refusal
from tests.waiting import SOON_S, forever, until

MIB = 1 << 20
BURST = 2_400
"""Calls at once, fewer than one connection may have."""
LARGE = b"\xff" * (39 * MIB // 10)
"""No message, which costs no more than to receive it."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started = Serve(tmp_path)
    yield started
    started.close()


def observation(number: int, **fields: Any) -> pb.RecordFeedbackRequest:
    return pb.RecordFeedbackRequest(
        feedback_id=f"f{number}", request_id="a", name="good", bool_value=True, candidate_index=0, **fields
    )


# Feedback


async def test_a_flood_of_feedback_is_refused_at_once(run: Run) -> None:
    """With pushback; what is taken is committed, and keys are checked and answers given meanwhile."""
    running = await run()
    await running.ask(request_id="a")
    flood = 3 * (THREADS + MOST_WAITING)
    with running.slow_disk():
        calls = [running.stub.RecordFeedback(observation(i), timeout=SOON_S) for i in range(flood)]
        refused = [asyncio.ensure_future(refusal(call)) for call in calls]
        await until(lambda: sum(one.done() for one in refused) >= flood - THREADS - MOST_WAITING)
        for ended in (one.result() for one in refused if one.done()):
            assert ended.code is grpc.StatusCode.UNAVAILABLE and ended.pushback_ms
    taken = await asyncio.gather(*refused, return_exceptions=True)
    assert sum(isinstance(one, AssertionError) for one in taken) == THREADS + MOST_WAITING, "these were answered"
    await running.stub.RecordFeedback(observation(flood))


async def test_feedback_on_one_sealed_request_reads_it_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await run(settings={"log.seal_age_s": 0.05})
    await running.ask(request_id="a")
    await until(lambda: (found := running.server.spool.latest("", "a")) is not None and found.record is None)
    whole: list[None] = []
    monkeypatch.setattr(Spool, "find", lambda *_: whole.append(None))
    read: list[None] = []
    count = Lookup.count_candidates

    def counted(lookup: Lookup, logged: Logged) -> int:
        read.append(None)
        return count(lookup, logged)

    monkeypatch.setattr(Lookup, "count_candidates", counted)
    for number in range(20):
        await running.stub.RecordFeedback(observation(number))
    refused = await refusal(
        running.stub.RecordFeedback(
            pb.RecordFeedbackRequest(request_id="a", name="good", bool_value=True, candidate_index=4)
        )
    )
    assert "4 is not from 0 to 3" in refused.violations["candidate_index"]
    assert len(read) == 1 and not whole, "and that read no text and no token id"


async def test_feedback_counts_in_the_quota(run: Run, guard: Guard) -> None:
    key = guard.key("anna", candidates_per_minute=6)
    running = await run(settings={"security.api_keys": str(guard.keys)})
    metadata = shows(key)
    await running.stub.Generate(question(request_id="a"), metadata=metadata)
    for number in range(2):
        await running.stub.RecordFeedback(observation(number), metadata=metadata)
    refused = await refusal(running.stub.RecordFeedback(observation(2), metadata=metadata))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED and refused.pushback_ms


@pytest.mark.usefixtures("looked_at_each_time")
async def test_keys_are_checked_while_asyncio_s_threads_are_taken(run: Run, guard: Guard) -> None:
    """A redaction that hangs, a slow disk: all that `asyncio.to_thread` runs shares these."""
    running = await run(settings={"security.api_keys": str(guard.keys)} if guard.key("anna") else {})
    key = guard.key("bob")
    release = threading.Event()
    most = min(32, (os.cpu_count() or 1) + 4)
    blocked = [asyncio.ensure_future(asyncio.to_thread(release.wait, 2 * SOON_S)) for _ in range(most)]
    try:
        await running.stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=shows(key), timeout=SOON_S)
    finally:
        release.set()
        await asyncio.gather(*blocked)


# Bytes


async def test_messages_wait_for_room_and_are_refused_without_it(run: Run) -> None:
    """Two may arrive at a time; a body that stands still holds its room for a limited time only."""
    settings = {"limits.max_bytes_in_flight": 8 * MIB, "limits.max_queue_s": 0.2, "limits.slow_sender_s": 3.0}
    running = await run(settings=settings)
    open_call: Any = running.channel.stream_unary(GENERATE)
    silent = [open_call() for _ in range(2)]
    ended = [asyncio.ensure_future(refusal(call)) for call in silent]
    await until(lambda: _held(running) == 8 * MIB)
    refused = await running.refused()
    assert refused.code is grpc.StatusCode.UNAVAILABLE and refused.pushback_ms
    assert await running.health() == "SERVING"
    for stalled in await asyncio.gather(*ended):
        assert stalled.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "3 s" in stalled.details
    await running.ask()
    metrics = await running.metrics()
    assert metrics['bon_messages_refused_total{reason="full"}'] == 1
    assert metrics['bon_messages_refused_total{reason="slow"}'] == 2
    assert metrics["bon_message_bytes_in_flight"] == 0
    assert metrics["bon_message_bytes_in_flight_limit"] == 8 * MIB


def _held(running: Running) -> int:
    registry: Any = running.server._service._metrics.registry
    return int(registry.get_sample_value("bon_message_bytes_in_flight") or 0)


async def test_small_messages_do_not_starve(run: Run) -> None:
    """As many calls as may run and wait, all at once, where only one largest message has room."""
    policy = ScriptedPolicy(lambda index: _never())
    settings = {"limits.max_bytes_in_flight": 5 * MIB, "limits.max_queue_s": SOON_S, "limits.max_queue_share": 1.0}
    running = await run(policy, settings=settings)
    calls = [running.stub.Generate(question(n=1), timeout=60) for _ in range(512)]
    await until(lambda: policy.running == 512, 60)
    assert 0 < _held(running) < MIB, "each holds what it weighs"
    for call in calls:
        call.cancel()
    await until(lambda: _held(running) == 0)


async def _never() -> Any:
    await forever()


async def test_a_call_without_a_message_is_told(run: Run) -> None:
    running = await run()
    refused = await refusal(running.channel.stream_unary(GENERATE)(iter(())))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT and "message" in refused.violations


async def test_a_call_that_leaves_gives_back_its_room() -> None:
    room = Room(10, 10, 2, SOON_S)
    assert await room.reserve()
    first, second = (asyncio.ensure_future(room.reserve()) for _ in range(2))
    await asyncio.sleep(0)
    assert not await room.reserve(), "two wait"
    first.cancel()
    room.give_back(10)  # before the first has noticed
    await asyncio.wait((first,))
    assert await second and room.held_bytes == 10
    room.give_back(10)
    assert room.held_bytes == 0


async def test_many_large_bodies_take_bounded_memory(serve: Serve) -> None:
    """300 of 3.9 MB weigh 1.2 GB; 32 MiB are allowed."""
    process = serve("synthetic", "--set", f"limits.max_bytes_in_flight={32 * MIB}", "--set", "limits.max_queue_s=0.5")
    before = _peak_rss(process.process.pid)
    channels = [grpc.aio.insecure_channel(process.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(10)]
    asking: list[Any] = [channel.unary_unary(GENERATE) for channel in channels]
    calls = [asking[i % 10](LARGE, timeout=60) for i in range(300)]
    ended = Counter([(await refusal(call)).code for call in calls])
    assert ended.keys() <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE}, ended
    assert _peak_rss(process.process.pid) - before < 32 * MIB + 224 * MIB
    await asyncio.gather(*(channel.close() for channel in channels))


def _peak_rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# Connections


async def test_connections_are_bounded_and_silent_ones_end(run: Run) -> None:
    """Silent, half a preface, settings and no call: each ends, and whoever waits for a place gets one."""
    settings = {"limits.max_connections": 8, "limits.handshake_s": 1.0, "limits.idle_connection_s": 1.5}
    running = await run(settings=settings)
    host, _, port = running.server.address.rpartition(":")
    strangers = [socket.create_connection((host, int(port)), SOON_S) for _ in range(12)]
    try:
        for number, stranger in enumerate(strangers):
            stranger.sendall((b"", PREFACE[:9], PREFACE)[number % 3])
        ended = await asyncio.gather(*(asyncio.to_thread(_is_closed, one) for one in strangers))
        assert all(ended)
    finally:
        for stranger in strangers:
            stranger.close()
    await running.ask()


async def test_a_tls_handshake_that_never_ends_is_cut(guard: Guard, start_server: StartServer) -> None:
    """Nothing, a part of a client's greeting, and a whole one after which nothing comes."""
    guard.key()
    server = await start_server(**guard.settings, **{"limits.handshake_s": 0.5})
    host, _, port = server.address.rpartition(":")
    greeting = ssl.MemoryBIO()
    asks = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), greeting, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        asks.do_handshake()
    hello = greeting.read()
    strangers = [socket.create_connection((host, int(port)), SOON_S) for _ in range(3)]
    try:
        for stranger, said in zip(strangers, (b"", hello[:20], hello), strict=True):
            stranger.sendall(said)
        assert all(await asyncio.gather(*(asyncio.to_thread(_is_closed, one) for one in strangers)))
    finally:
        for stranger in strangers:
            stranger.close()


def _is_closed(stranger: socket.socket) -> bool:
    try:
        while stranger.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_too_few_descriptors_are_no_start(tmp_path: Path) -> None:
    words = [sys.executable, *command(tmp_path, "--policy", "synthetic")]
    ended = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=START_S, preexec_fn=lambda: _allow(64, 64)
    )
    assert ended.returncode == 1
    assert "only 64 descriptors" in ended.stderr and "ulimit -n" in ended.stderr and "Traceback" not in ended.stderr


async def test_strangers_leave_descriptors_for_the_log(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit becomes the hard one, and connections take of it what the server can spare."""
    hard = OWN_FILES + FEWEST_CONNECTIONS + 60
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    popen: Any = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: popen(*a, preexec_fn=lambda: _allow(64, hard), **k))
    process = serve("synthetic")
    monkeypatch.undo()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    host, _, port = process.address.rpartition(":")
    async with grpc.aio.insecure_channel(process.address) as channel:
        await channel.channel_ready()
        strangers = [socket.create_connection((host, int(port)), SOON_S) for _ in range(hard)]
        for stranger in strangers:
            stranger.sendall(PREFACE)
        call: Any = channel.unary_unary(GENERATE)
        answer = pb.GenerateResponse.FromString(await call(question().SerializeToString(), timeout=SOON_S))
        assert answer.best.text
        assert _descriptors_left(process.process.pid) > OWN_FILES // 2, "for log and metrics"
        for stranger in strangers:
            stranger.close()


def _descriptors_left(pid: int) -> int:
    soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return soft - len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _allow(soft: int, hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_burst_of_calls_gets_typed_answers(run: Run) -> None:
    """gRPC by itself ends at random, as CANCELLED, calls that wait to be accepted beyond the first thousand."""
    running = await run()
    calls = [running.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=SOON_S) for _ in range(BURST)]
    codes = Counter([await call.code() for call in calls])
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes
