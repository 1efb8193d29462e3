"""The fake server as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.client.fake_server import FakeService, serving


@pytest.fixture
async def service() -> FakeService:
    """What the fake server does and has seen."""
    return FakeService()


@pytest.fixture
async def target(service: FakeService) -> AsyncIterator[str]:
    """Where it listens."""
    async with serving(service) as port:
        yield f"127.0.0.1:{port}"
