"""A bare grpc.aio server that answers every call with the same bytes: the most that Python's gRPC can do.

Run as `python -m benchmarks.echo_process PORT RESPONSE_FILE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
import uvloop

SERVICE = "benchmarks.Echo"
METHOD = f"/{SERVICE}/Echo"


async def serve(port: int, response: bytes) -> None:
    """Answers until the process is ended."""

    async def echo(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return response

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))
