"""What is shuffled: rows of fixed width, without texts.

A `CANDIDATE` is one that may be chosen, a `PICK` one that was. Both are (m,) structured arrays. `(writer, ordinal,
index)` is the place in the log, no two alike, and the order of the log; a writer is counted through all logs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.void]

KEY = np.dtype([("hi", "u8"), ("lo", "u8")])
"""128 bits of the identity of a prompt, or of a text."""
CANDIDATE = np.dtype(
    [
        ("hi", "u8"),
        ("lo", "u8"),
        ("ordinal", "i8"),
        ("value", "f8"),  # the reward, normalised if that was asked for
        ("random", "f8"),  # in [0, 1); 0 where no rule asks for it
        ("text_hi", "u8"),
        ("text_lo", "u8"),
        ("writer", "i4"),
        ("index", "i4"),
        ("form", "i4"),  # of the prompt: a position in FORMS
        ("unused", "i4"),
    ]
)
PICK = np.dtype(
    [
        # The line of the training set: the place of its first candidate. The candidates of a line stand together.
        ("line_ordinal", "i8"),
        ("line_writer", "i4"),
        ("line_index", "i4"),
        ("form", "i4"),
        ("role", "i4"),  # 0: chosen, 1: rejected
        ("ordinal", "i8"),
        ("writer", "i4"),
        ("index", "i4"),
        ("hi", "u8"),
        ("lo", "u8"),
        ("rank", "i8"),
        ("weight", "f8"),
        ("value", "f8"),
        ("priority", "f8"),  # what decided
    ]
)
FORMS = ("chat", "text", "tokens")
CHAT, TEXT, TOKENS = range(3)
PLACE = ("writer", "ordinal", "index")
LINE = ("form", "line_writer", "line_ordinal", "line_index")


def sort_by(rows: Rows, *names: str) -> Rows:
    """The rows sorted by these fields, the first one first."""
    first = rows[names[0]]
    order = np.argsort(first, kind="stable")
    if (first[order[1:]] == first[order[:-1]]).any():  # keys of prompts mostly differ in the first field already
        order = np.lexsort([rows[name] for name in reversed(names)])
    ordered: Rows = rows[order]
    return ordered


def firsts(rows: Rows, *names: str) -> NDArray[np.bool_]:
    """(m,) whether a row differs from the one before it in these fields."""
    different = np.ones(len(rows), dtype=np.bool_)
    if len(rows):
        different[1:] = False
        for name in names:
            different[1:] |= rows[name][1:] != rows[name][:-1]
    return different


def empty(of: np.dtype[Any]) -> Rows:
    """No rows."""
    return np.empty(0, dtype=of)


def distinct(keys: Rows) -> int:
    """How many different keys there are."""
    return int(firsts(sort_by(keys, "hi", "lo"), "hi", "lo").sum())
