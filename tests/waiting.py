"""Waiting for what a test expects to happen soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Never

SOON_S = 15.0
"""More than anything in these tests takes on a busy machine, less than anyone wants to wait for a hang."""


async def until(condition: Callable[[], bool], seconds: float = SOON_S) -> None:
    """Returns once the condition holds; raises TimeoutError when it does not for too long."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- conditions are about code that knows nothing of tests
            await asyncio.sleep(0.001)


async def forever() -> Never:
    """Never returns."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")
