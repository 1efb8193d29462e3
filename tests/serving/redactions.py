"""Redactions to test with, named to the server as `tests.serving.redactions:NAME`."""

from __future__ import annotations


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
