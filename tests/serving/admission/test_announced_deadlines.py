"""What a call announces of its deadline is longer than its caller waits, and the server knows."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.serving.admission.deadlines import surely_left_s
from bon_server.serving.attempt import Attempts
from tests.serving.conftest import Run
from tests.serving.running import question

METHOD = "/test/Deadlines"


class Announced(grpc.GenericRpcHandler):
    """Answers with the seconds that the call has left."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Whatever is called."""
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return str(context.time_remaining()).encode()


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """To a server that does nothing else."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Announced(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def test_it_is_not_believed(channel: grpc.aio.Channel) -> None:
    dice = random.Random(0)
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    too_long = list[float]()
    for _ in range(400):
        timeout_s = 10 ** dice.uniform(0.3, 3.9)
        began_s = time.monotonic()
        announced_s = float(await call(b"", timeout=timeout_s))
        waited_s = time.monotonic() - began_s
        assert surely_left_s(announced_s) < timeout_s
        assert surely_left_s(announced_s) > 0.94 * (timeout_s - waited_s)
        too_long.append(announced_s / timeout_s - 1)
    assert max(too_long) > 0.02, "were it exact, nothing would have to be taken off"


async def test_the_server_does_not_believe_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method, with a deadline that no answer needs."""
    given = list[float]()
    original: Any = Attempts.run

    async def noting(self: Attempts, request: Any, caller: str, deadline_s: float, *rest: Any) -> Any:
        given.append(deadline_s)
        return await original(self, request, caller, deadline_s, *rest)

    monkeypatch.setattr(Attempts, "run", noting)
    stub = (await run()).stub
    await stub.Generate(question(), timeout=1000)
    await stub.Score(pb.ScoreRequest(text="q", completions=["a"]), timeout=1000)
    async for _ in stub.GenerateStream(pb.GenerateStreamRequest(request=question()), timeout=1000):
        pass
    assert len(given) == 3 and max(given) < 975, "1,000 s are announced as up to 1,010"
