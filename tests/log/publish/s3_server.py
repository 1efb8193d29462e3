"""An S3 server on loopback, moto's, with one bucket.

Run as `-m tests.log.publish.s3_server`; ends when its stdin does.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.log.publish.s3_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None and server.stdin is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(30)


def main() -> None:
    """Prints the port."""
    from moto.server import ThreadedMotoServer

    logging.disable(logging.INFO)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")).close()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
