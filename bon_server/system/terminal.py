"""All that commands print goes through here, so that nothing of somebody else's text is obeyed by a terminal.

Completions, prompts, tags, ids and names of files may hold escape sequences, and what rich takes for its own markup.
So a `Terminal` shows plain strings as they are, control characters made visible (`bon.visible`); what is to be styled
says so with `styled`. JSON goes out with these characters as escapes, which means the same.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text


class Terminal(Console):
    """A console that takes strings for text and nothing else: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string comes by here: what is printed, cells of tables, titles."""
        plain = {**options, "markup": False, "emoji": False}
        return super().render_str(_visible(text), **plain)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text of several parts, each alone or with its style; control characters are made visible."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((_visible(text), style) for text, style in pairs))


def say(text: str) -> None:
    """Prints lines on stdout."""
    print(_visible(text), flush=True)  # noqa: T201


def say_if_heard(text: str) -> None:
    """As `say`, for a server: it goes on when its terminal or the reader of its pipe is gone."""
    with suppress(OSError):
        say(text)


def warn(text: str) -> None:
    """Prints `bon:` and the text on stderr."""
    print(f"bon: {_visible(text)}", file=sys.stderr)  # noqa: T201


def print_json(document: object) -> None:
    """Prints one JSON document on stdout, in ASCII."""
    from bon.visible import visible_json

    print(visible_json(json.dumps(document)))  # noqa: T201


def prepare_streams() -> None:
    """Makes the standard streams usable, whatever this process was given; call it first.

    A stream that is closed becomes the null device: otherwise the next file that is opened would get its number, and
    what a library writes to stderr would go into the log. Characters that the terminal's encoding lacks are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # inherited by children, which a descriptor fresh from `open` is not
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        _escape_what_it_lacks(stream)


def let_go_of_streams() -> None:
    """Drops what could not be written, because nobody reads it any more; call it last.

    Python tries once more as it ends, and would then exit with 120 instead of what the command meant.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # ValueError: closed already
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


def _escape_what_it_lacks(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)  # a test may have put something simpler in its place
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _visible(text: str) -> str:
    from bon.visible import visible  # here: the client's package imports gRPC, which the help of a verb does without

    return visible(text, lines=True)
