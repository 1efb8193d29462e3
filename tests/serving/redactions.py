"""Redactions to test with, named to the server as `tests.serving.redactions:NAME`."""

from __future__ import annotations

import os
import re
import time


def hide(text: str) -> str:
    """Phone numbers go."""
    return text.replace("555-1234", "[phone]")


def breaks(text: str) -> str:
    """Fails on what it should have hidden."""
    if "555-1234" in text:
        raise ValueError(text)
    return text


def stops(text: str) -> str:
    """Raises what cannot leave a thread."""
    raise StopIteration(text)


def gives_none(text: str) -> str:
    """Forgets to return."""
    return None  # type: ignore[return-value]


async def waits(text: str) -> str:
    """Not a plain function."""
    return text


def takes_none() -> str:
    """Takes no text."""
    return ""


CONSTANT = 3


def hangs(text: str) -> str:
    """Never returns where there is something to hide."""
    while "555-1234" in text:
        time.sleep(1)
    return text


def backtracks(text: str) -> str:
    """Holds the interpreter's lock where there is something to hide."""
    if "555-1234" in text:
        re.match(r"(a+)+$", "a" * 64 + "b")
    return text


def interrupts(text: str) -> str:
    """Raises what is no Exception."""
    raise KeyboardInterrupt(text)


def exits(text: str) -> str:
    """Ends its process."""
    os._exit(0)


def gives_up(text: str) -> str:
    """Raises what generators raise."""
    raise GeneratorExit(text)


def halves(text: str) -> str:
    """Gives half a surrogate pair."""
    return "\ud800"
