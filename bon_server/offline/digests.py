"""Identities as numbers, so that they can be sorted and shuffled: 128 bits of a prompt, of a text, of a place."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.offline.rows import KEY, Rows
from bon_server.selection import request_key

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
