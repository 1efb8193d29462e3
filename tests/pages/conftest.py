"""A port for the servers of these pages."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
