"""The server as a process: signals, exit codes, and one sentence where it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.core.types import Outcome
from bon_server.log.read.reader import LogReader
from tests.serving.processes import START_S, Serve, command, environment
from tests.serving.running import question, refusal
from tests.waiting import until

pytestmark = pytest.mark.slow

INTERPRETER_S = 0.05
"""To start a bare interpreter, on an idle machine."""
SLOW_POLICY = "synthetic:tokens_per_s=20,tokens=30"
HANGING_POLICY = "synthetic:hang_rate=1"


STUCK = """
import ctypes, pathlib, sys, threading, time
def keep_the_lock():
    while not pathlib.Path(sys.argv[-1]).exists():
        time.sleep(0.05)
    ctypes.PyDLL(None).pause()
threading.Thread(target=keep_the_lock).start()
from bon_server.cli import main
main()
"""
"""`bon`, until its last argument, the ready file, exists."""

ON_ITS_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Takes its stdin as the terminal of its session, then becomes the command."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(policy, *more words)`."""
    serve = Serve(tmp_path)
    yield serve
    serve.close()


def fails(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command that must end by itself."""
    done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True, timeout=START_S)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def on_this_machine(seconds: float) -> float:
    """How long something takes here and now that takes so long on an idle machine."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True, timeout=START_S)
    return seconds * max(1.0, (time.monotonic() - began) / INTERPRETER_S)


def outcomes(log: Path) -> dict[str, Outcome]:
    """Of the logged requests."""
    with LogReader(log) as reader:
        return {record.request_id: record.outcome for record in reader.records()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_while_idle_ends_it_within_two_seconds(serve: Serve, number: int) -> None:
    server = serve()
    async with grpc.aio.insecure_channel(server.address) as channel:
        await BestOfNServiceStub(channel).Generate(question(request_id="a"), timeout=START_S)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        began = server.signal(number)
        assert await server.end() == 0
        assert time.monotonic() - began < on_this_machine(2.0), "also with an open channel and a health watch"
    assert outcomes(server.log) == {"a": Outcome.OK}
    assert "draining: 0 calls" in server.process.communicate()[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_with_work_waits_for_it(serve: Serve, number: int) -> None:
    server = serve(SLOW_POLICY)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = BestOfNServiceStub(channel)
        requests = [question(request_id=f"r{i}", sampling=pb.SamplingParams(max_tokens=40)) for i in range(4)]
        calls = [stub.Generate(request, timeout=START_S) for request in requests]
        await asyncio.sleep(0.3)
        server.signal(number)
        await asyncio.sleep(0.2)
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await refusal(stub.Generate(question()))).code is grpc.StatusCode.UNAVAILABLE
        assert [answer.n_scored for answer in await asyncio.gather(*calls)] == [4] * 4
        assert await server.end() == 0
    assert outcomes(server.log) == {f"r{i}": Outcome.OK for i in range(4)}


UNHEARD = {
    "no stderr": "exec 2>&-",
    "no standard streams at all": "exec <&- >&- 2>&-",
    "nobody reads stderr": "exec 2> >(:); wait $!",
    "nobody reads either": "exec > >(:) 2>&1; wait $!",
    "nohup": "trap '' HUP; exec > /dev/null 2>&1",
}
"""What a shell does before it becomes the server."""


@pytest.mark.parametrize("streams", UNHEARD.values(), ids=UNHEARD)
async def test_a_server_that_nobody_hears_serves_and_drains(tmp_path: Path, streams: str) -> None:
    """A terminal or a reader of a pipe that is gone is no reason to end, nor to write into the log's files."""
    ready = tmp_path / "ready"
    words = [sys.executable, *command(tmp_path, "--policy", SLOW_POLICY, "--ready-file", str(ready))]
    shell = ["bash", "-c", f'{streams}; exec "$@"', "bash", *words]
    process = await asyncio.create_subprocess_exec(*shell, env=environment(), stdout=DEVNULL, stderr=DEVNULL)
    try:
        await until(lambda: ready.exists() or process.returncode is not None, START_S)
        assert process.returncode is None, "it ended by itself"
        assert not _in_folder(process.pid, tmp_path), "a file has the number of a stream"
        async with grpc.aio.insecure_channel(json.loads(ready.read_text())["address"]) as channel:
            stub = BestOfNServiceStub(channel)
            if streams == UNHEARD["nohup"]:
                process.send_signal(signal.SIGHUP)
                await stub.Generate(question(request_id="b"), timeout=START_S)
            call = stub.Generate(question(request_id="a"), timeout=START_S)
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM if streams == UNHEARD["nohup"] else signal.SIGHUP)
            assert (await call).n_scored == 4
        assert await asyncio.wait_for(process.wait(), START_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert outcomes(tmp_path / "log")["a"] is Outcome.OK


def _in_folder(pid: int, folder: Path) -> list[Path]:
    """Files of a folder that a process has open as standard streams."""
    streams = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]
    return [path for path in streams if path.is_relative_to(folder)]


async def test_a_terminal_that_is_closed_drains_the_server(tmp_path: Path) -> None:
    """A real one: the kernel sends SIGHUP, and every write to it fails."""
    ready = tmp_path / "ready"
    words = command(tmp_path, "--policy", SLOW_POLICY, "--ready-file", str(ready))
    ours, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ON_ITS_TERMINAL, sys.executable, *words),
        env=environment(),
        start_new_session=True,
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        await until(lambda: ready.exists() or process.returncode is not None, START_S)
        assert process.returncode is None, os.read(ours, 10_000).decode()
        async with grpc.aio.insecure_channel(json.loads(ready.read_text())["address"]) as channel:
            call = BestOfNServiceStub(channel).Generate(question(request_id="a"), timeout=START_S)
            await asyncio.sleep(0.3)
            os.close(ours)
            assert (await call).n_scored == 4
        assert await asyncio.wait_for(process.wait(), START_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert outcomes(tmp_path / "log") == {"a": Outcome.OK}


async def test_a_second_signal_stops_at_once(serve: Serve) -> None:
    server = serve(HANGING_POLICY)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = BestOfNServiceStub(channel).Generate(question(request_id="a"), timeout=START_S)
        await asyncio.sleep(0.3)
        server.signal()
        await asyncio.sleep(0.3)
        assert server.process.poll() is None
        began = server.signal()
        refused = await refusal(call)
        assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, 1000)
        assert await server.end() == 0
        assert time.monotonic() - began < on_this_machine(2.0)
    assert outcomes(server.log) == {"a": Outcome.FAILED}


async def test_when_the_grace_is_over_the_rest_is_told_and_logged(serve: Serve) -> None:
    server = serve(HANGING_POLICY, "--set", "limits.drain_s=0.5")
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = BestOfNServiceStub(channel).Generate(question(request_id="a"), timeout=START_S)
        await asyncio.sleep(0.3)
        server.signal()
        assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
        assert await server.end() == 0
    assert outcomes(server.log) == {"a": Outcome.FAILED}


HANGING_REWARD = ["--reward", "hanging=function:tests.serving.hanging_reward:reward"]


async def test_a_reward_function_that_hangs_fails_its_requests_and_no_others(serve: Serve) -> None:
    server = serve("synthetic", *HANGING_REWARD, "--set", "reward.timeout_s=0.5", "--set", "reward.processes=2")
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = BestOfNServiceStub(channel)
        bad = [stub.Generate(question(text="bad", n=8), timeout=2) for _ in range(2)]
        for call in bad:
            assert (await refusal(call)).code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert (await stub.Generate(question(text="good"), timeout=START_S)).n_scored == 4
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    server.signal()
    assert await server.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_server_whose_reward_function_hangs(serve: Serve, number: int) -> None:
    server = serve("synthetic", *HANGING_REWARD, "--set", "reward.timeout_s=3600", "--set", "limits.drain_s=0.5")
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = BestOfNServiceStub(channel).Generate(question(text="bad", request_id="a", n=8), timeout=START_S)
        refused = asyncio.create_task(refusal(call))
        await asyncio.sleep(0.5)
        server.signal(number)
        assert (await refused).code is grpc.StatusCode.UNAVAILABLE
        assert await server.end() == 0
    assert outcomes(server.log) == {"a": Outcome.FAILED}


HANGING_THREAD = """
import threading
threading.Thread(target=threading.Event().wait).start()
from bon_server.cli import main
main()
"""
"""`bon`, in which a library keeps a thread that never ends."""


async def test_a_thread_that_never_ends_does_not_keep_the_process(serve: Serve) -> None:
    server = serve(program=("-c", HANGING_THREAD))
    server.signal()
    assert await server.end() == 0


async def test_an_engine_that_hangs_ends_the_server(serve: Serve) -> None:
    server = serve(HANGING_POLICY, "--set", "limits.engine_stall_s=1")
    async with grpc.aio.insecure_channel(server.address) as channel:
        refused = await refusal(BestOfNServiceStub(channel).Generate(question(request_id="a"), timeout=START_S))
        assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, 1000)
        assert await server.end() == 1
    said = server.process.communicate()[0]
    assert "the policy's engine has work and has made no step for 1 s" in said
    assert "most recent call first" in said, "the stacks of the threads"
    assert outcomes(server.log) == {"a": Outcome.FAILED}


def test_a_server_that_is_stuck_ends_itself(tmp_path: Path) -> None:
    """A thread that never gives the interpreter lock back stops everything else, signals too."""
    ready = tmp_path / "ready"
    words = command(tmp_path, "--policy", "synthetic", "--set", "limits.loop_stall_s=1", "--ready-file", str(ready))
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, *words[2:]], env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        said = process.communicate(timeout=START_S)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert said.startswith("Timeout (0:00:01)!") or "\nTimeout (0:00:01)!" in said


async def test_an_unread_stream_does_not_hold_up_the_end(serve: Serve) -> None:
    server = serve("synthetic:tokens=8000")
    async with grpc.aio.insecure_channel(server.address) as channel:
        request = question(request_id="a", n=16, sampling=pb.SamplingParams(max_tokens=20_000))
        stream = BestOfNServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(request=request))
        await until(lambda: (server.log / "spool.sqlite").exists() and outcomes(server.log) != {}, START_S)
        began = server.signal()
        assert await server.end() == 0
        assert time.monotonic() - began < on_this_machine(4.0)
        stream.cancel()
    assert outcomes(server.log) == {"a": Outcome.OK}


async def test_the_banner_and_the_ready_file_agree(serve: Serve) -> None:
    server = serve()
    server.signal()
    await server.end()
    out = server.process.communicate()[0]
    assert f"gRPC      {server.address}" in out
    assert f"--target {server.address}" in out


async def test_it_starts_again_on_the_same_log(serve: Serve) -> None:
    first = serve()
    first.signal(signal.SIGKILL)
    await first.end()
    second = serve()
    second.signal()
    assert await second.end() == 0


def test_a_taken_port_is_told_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = fails([*command(tmp_path, "--policy", "synthetic"), "--port", port])
        assert (code, said) == (1, f"bon: cannot listen on 127.0.0.1:{port}: Address already in use")
        code, said = fails([*command(tmp_path, "--policy", "synthetic"), "--metrics-port", port])
        assert (code, said) == (1, f"bon: cannot serve metrics on 127.0.0.1:{port}: Address already in use")


def test_a_log_in_use_names_who_uses_it(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    code, said = fails(command(tmp_path, "--policy", "synthetic"))
    assert code == 1
    assert f"pid {server.process.pid} on {socket.gethostname()}" in said
    assert len(said.splitlines()) == 1


WRONG_STARTS: dict[str, tuple[list[str], int, str]] = {
    "no such policy": (["--policy", "/no/such/model"], 1, r"bon: model /no/such/model: no such directory.*"),
    "no policy": ([], 2, r"bon: policy\.model is empty.*"),
    "bad option": (["--policy", "synthetic:fail_rate=2"], 2, r"bon: 'synthetic:fail_rate=2'.*"),
    "unknown setting": (["--policy", "synthetic", "--set", "limits.max_m=1"], 2, r"bon: unknown key limits\.max_m.*"),
    "bad setting": (["--policy", "synthetic", "--set", "limits.max_n=0"], 2, r"bon: limits\.max_n = '0': .*"),
    "contradiction": (["--policy", "synthetic", "--set", "limits.max_n=4"], 2, r"bon: defaults\.n = 16 is above.*"),
    "no such file": (["--config", "/no/such.toml"], 2, r"bon: cannot read the configuration '/no/such\.toml'.*"),
    "open to others": (
        ["--policy", "synthetic", "--host", "0.0.0.0"],
        2,
        r"bon: listen\.host = '0\.0\.0\.0' can be .*",
    ),
    "metrics open to others": (
        ["--policy", "synthetic", "--metrics-host", "::"],
        2,
        r"bon: listen\.metrics_host = '::' .*",
    ),
    "no such keys": (
        ["--policy", "synthetic", "--api-keys", "/no/keys"],
        2,
        r"bon: cannot read the API keys '/no/keys'.*",
    ),
    "half of TLS": (["--policy", "synthetic", "--tls-cert", "/no/cert"], 2, r"bon: TLS needs both --tls-cert and .*"),
    "port out of range": (
        ["--policy", "synthetic", "--port", "70000"],
        2,
        r"bon: --port: '70000' given; .* 0 to 65535",
    ),
    "setting out of range": (
        ["--policy", "synthetic", "--set", "listen.port=70000"],
        2,
        r"bon: listen\.port = '70000': .*",
    ),
}


@pytest.mark.parametrize(("words", "code", "said"), WRONG_STARTS.values(), ids=WRONG_STARTS.keys())
def test_wrong_starts_are_told_in_one_sentence(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    found_code, found = fails([*command(tmp_path), *words])
    assert found_code == code
    assert re.fullmatch(said, found), found
