"""What a selection shuffles: rows of fixed width, without texts, and the files they go through.

A `CANDIDATE` is one that may be chosen, a `PICK` one that was. Both are (m,) structured arrays. `(writer, ordinal,
index)` is the place in the log, no two alike, and the order of the log; a writer is counted through all logs.

A file of a shuffle has partition after partition, so that a partition of many files is read fast. It appears whole, so
that what is there after a crash can be used:

    (partitions + 1,) int64     where each partition begins, in rows
    rows                        partition after partition

Identities are numbers, so that they can be sorted and shuffled: 128 bits of a prompt, of a text, of a place.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.core.selection import request_key
from bon_server.system.files import whole_file

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


def write_runs(path: Path, rows: Rows, partition: NDArray[np.int64], partitions: int) -> None:
    """partition: (m,) which partition, from 0, each row belongs to. Rows of a partition keep their order."""
    order = np.argsort(partition, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(partition, minlength=partitions))]).astype(np.int64)
    with whole_file(path) as file:
        file.write(starts.tobytes())
        file.write(rows[order].tobytes())


def read_runs(paths: Iterable[Path], of: np.dtype[Any], partitions: int, first: int, last: int) -> Rows:
    """The rows of the partitions first, first + 1, …, last of all files."""
    pieces = [empty(of)]
    for path in paths:
        with path.open("rb") as file:
            file.seek(8 * first)
            starts = np.frombuffer(file.read(8 * (last - first + 2)), np.int64)
            file.seek(8 * (partitions + 1) + int(starts[0]) * of.itemsize)
            pieces.append(np.frombuffer(file.read(int(starts[-1] - starts[0]) * of.itemsize), of))
    return np.concatenate(pieces)


_HEX_CHARS = 64
_DIGITS = np.full(256, 255, dtype=np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def prompt_keys(hashes: Any) -> Rows:
    """(n,) the first 128 bits of prompt hashes (Arrow strings); of what is no SHA-256, of its SHA-256."""
    if len(hashes) and not hashes.null_count and pc.all(pc.equal(pc.binary_length(hashes), _HEX_CHARS)).as_py():
        data = np.frombuffer(hashes.buffers()[2], np.uint8)[_start(hashes) :][: _HEX_CHARS * len(hashes)]
        digits = _DIGITS[data.reshape(-1, _HEX_CHARS)[:, :32]]
        if digits.max() < 16:
            return _keys(((digits[:, 0::2] << 4) | digits[:, 1::2]).tobytes())
    return _keys(b"".join(map(_prompt_key, hashes.to_pylist())))


def _prompt_key(text: str | None) -> bytes:
    """One at a time: the key of a prompt must not depend on what else is in its batch."""
    if text is not None and re.fullmatch(r"[0-9a-f]{64}", text):
        return bytes.fromhex(text[:32])
    return hashlib.sha256((text or "").encode()).digest()[:16]


def _start(strings: Any) -> int:
    """Where the first string begins in its buffer."""
    return int(np.frombuffer(strings.buffers()[1], np.int32, count=1, offset=4 * strings.offset)[0])


def text_keys(texts: Any, normalised: bool) -> Rows:
    """(m,) digests of texts (Arrow strings).

    normalised: of the text in NFKC, with cases folded and white space of any kind and length as one space.
    """
    strings: Iterable[str] = (text or "" for text in texts.to_pylist())
    if normalised:
        strings = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in strings)
    return _keys(b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in strings))


def request_keys(batch: Any) -> Rows:
    """(n,) digests of caller and request id, which attempts at one request have in common."""
    return _keys(
        b"".join(
            hashlib.blake2b(f"{len(principal or '')}:{principal or ''}{request_id}".encode(), digest_size=16).digest()
            for principal, request_id in zip(
                batch["principal"].to_pylist(), batch["request_id"].to_pylist(), strict=True
            )
        )
    )


def request_places(writer: int, ordinals: NDArray[np.int64]) -> Rows:
    """(n,) keys for requests that are not merged: each its own, evenly spread."""
    keys = np.empty(len(ordinals), dtype=KEY)
    place = ordinals.astype(np.uint64) | (np.uint64(writer) << np.uint64(44))
    keys["hi"] = place * np.uint64(0x9E3779B97F4A7C15)  # odd, so no two places have the same
    keys["lo"] = place
    return keys


def request_draws(seed: int, batch: Any) -> NDArray[np.uint64]:
    """(n,) random bits of requests, see `selection.request_key`."""
    columns = {"principal": "", "request_id": "", "attempt": 1}
    requests = zip(*(pc.fill_null(batch[name], missing).to_pylist() for name, missing in columns.items()), strict=True)
    return np.array([request_key(seed, *request) for request in requests], dtype=np.uint64)


def _keys(digests: bytes) -> Rows:
    """From 16 bytes each."""
    keys = np.empty(len(digests) // 16, dtype=KEY)
    keys["hi"], keys["lo"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    return keys
