"""One call whose :path is not UTF-8 ends a grpc.aio server. Needs grpcio alone: python grpcio_odd_path.py"""

from __future__ import annotations

import asyncio

import grpc


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def call(path: bytes) -> bytes:
    """A connection that opens with one call without a message."""
    headers = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    block = b"".join(bytes((0, len(name))) + name + bytes((len(value),)) + value for name, value in headers)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, block)


async def echo(request: bytes, context: object) -> bytes:
    """The only method."""
    return request


async def main() -> None:
    """Asks, sends the odd call, asks again."""
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for path in (None, b"/\xff"):
        if path is not None:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(call(path))
            await writer.drain()
            await asyncio.sleep(0.5)  # for the server to have read it
            writer.close()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Test/Echo")
            try:
                said = repr(await ask(b"hello", timeout=5))
            except grpc.aio.AioRpcError as error:
                said = f"{error.code()}: {error.details()}"
        print(f"{'before' if path is None else 'after'} the odd call: {said}")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
