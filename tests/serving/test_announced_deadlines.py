"""What a call announces of its deadline is longer than its caller waits."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from bon_server.serving.deadlines import surely_left_s

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
