"""A proxy in front of an S3 server that does to requests what networks and servers do."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.log.publish.s3_server import BUCKET

Fault = str | None
"""`503`, `500`, `404`, `403`: that status instead of an answer. `expired`: as S3 says it. `hang`: no answer until the
proxy ends. `reset`: the connection breaks once the request has come. `lost`: the request is carried out, and then the
connection breaks. `held`: it is carried out and the answer waits for `release`. None: all is well."""


class FaultyStore:
    """The proxy. `fault` decides on each request; `key` is the only access key it lets in."""

    def __init__(self, upstream_port: int) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.key = "valid"
        self.requests: list[tuple[str, str, Fault]] = []
        """(method, path, fault) in the order in which they came."""
        self.holding = threading.Event()
        self.release = threading.Event()
        self.upstream_port = upstream_port
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def next_faults(self, *faults: Fault, method: str = "PUT") -> None:
        """One for each of the next requests with this method."""
        left = list(faults)
        self.fault = lambda its, path: left.pop(0) if its == method and left else None

    def options(self, folder: Path, key: str = "valid") -> str:
        """An options file that leads here."""
        file = folder / "store.toml"
        endpoint = f'endpoint = "http://127.0.0.1:{self._server.server_port}"\nregion = "us-east-1"\n'
        keys = f'access_key_id = "{key}"\nsecret_access_key = "secret"\n'
        file.write_text(f"{endpoint}{keys}[client_options]\nallow_http = true\n", encoding="utf-8")
        return str(file)

    def close(self) -> None:
        """Lets go of what hangs."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def faulty_store(upstream_port: int) -> Iterator[FaultyStore]:
    """One, closed at the end."""
    store = FaultyStore(upstream_port)
    try:
        yield store
    finally:
        store.close()


def uri(prefix: str) -> str:
    """A place in the bucket."""
    return f"s3://{BUCKET}/{prefix}"


def _handler(store: FaultyStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True  # the client has gone

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = store.fault(self.command, self.path)
            key = re.search(r"Credential=(\w+)/", self.headers.get("Authorization", ""))
            if fault is None and (key is None or key[1] != store.key):
                fault = "expired"
            store.requests.append((self.command, self.path, fault))
            if fault in ("hang", "reset"):
                if fault == "hang":
                    store.release.wait(60)
                self._reset()
            elif fault == "expired":
                self._answer(400, b"<Error><Code>ExpiredToken</Code></Error>")
            elif fault is not None and fault.isdigit():
                self._answer(int(fault), b"<Error><Code>Planned</Code></Error>")
            else:
                status, headers, answer = self._forward(body)
                if fault == "held":
                    store.holding.set()
                    store.release.wait(60)
                if fault == "lost":
                    self._reset()
                else:
                    self._answer(status, answer, headers)

        do_PUT = do_GET = do_HEAD = do_POST = do_DELETE = _do

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            upstream = http.client.HTTPConnection("127.0.0.1", store.upstream_port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            content = answer.read()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _NOT_PASSED_ON}
            if self.command == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length", "0")
            upstream.close()
            return answer.status, headers, content

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response_only(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    return Handler


_NOT_PASSED_ON = ("content-length", "connection", "transfer-encoding", "keep-alive", "date", "server")
