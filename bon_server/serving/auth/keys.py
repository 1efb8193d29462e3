"""API keys: a TOML file that holds no key, only the SHA-256 of each, who has it, and what it opens.

    [[key]]
    name = "search"
    sha256 = "9f86d0…"
    rights = ["generate", "feedback"]
    candidates_per_minute = 6000     # of all keys of this name together; absent: no limit
    tokens_per_minute = 500000

A key is `NAME.SECRET` with 256 random bits for a secret, so a plain digest gives nothing away that could be guessed.
Several keys may have one name: the old and the new one while callers change over.

The server reads the file again when it changes. `bon keys` changes it: the file appears whole each time, and what
people wrote into it stays.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bon_server.core.errors import ConfigError, NotAuthenticated
from bon_server.serving.auth.watched import Watched
from bon_server.system.files import whole_file

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
RESERVED = ("import",)
"""Principals that the log uses itself."""

Positive = Annotated[int, Meta(ge=1)]


class Right(StrEnum):
    """What a key may be used for. None of them brings another with it."""

    GENERATE = "generate"
    """Generate, GenerateStream."""
    SCORE = "score"
    """Score."""
    FEEDBACK = "feedback"
    """RecordFeedback."""
    ADMIN = "admin"
    """What operators look at: the metrics, where they are served beyond loopback."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What all keys of a name may use together; None: as much as there is."""

    candidates_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Sampled tokens, of all candidates."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the file."""

    name: str
    """The principal: who calls, as the log, the quotas and the audit have it."""
    sha256: str
    """Of the whole key, in hexadecimal."""
    rights: tuple[Right, ...]
    candidates_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    created: Any = None
    """For people only."""

    @property
    def quota(self) -> Quota:
        return Quota(self.candidates_per_minute, self.tokens_per_minute)


@dataclass(frozen=True)
class Keys:
    """The entries of a file, by name."""

    by_name: Mapping[str, tuple[Key, ...]]

    def holder(self, presented: str) -> Key:
        """The entry of a key that a caller shows. Raises `NotAuthenticated`.

        Takes as long for a wrong secret as for the right one; a name is no secret.
        """
        digest = _sha256(presented)
        found = None
        for key in self.by_name.get(presented.partition(".")[0], ()):
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise NotAuthenticated("this API key is not one of the server's")
        return found

    def quota(self, name: str) -> Quota:
        """No limits where the name is not in the file any more."""
        return self.by_name[name][0].quota if name in self.by_name else Quota()


def watch_keys(file: str | None) -> Watched[Keys] | None:
    """None where the server asks for no key. Raises `ConfigError`."""
    if file is None:
        return None
    path = Path(file)
    watched = Watched([path], lambda: read_keys(path))
    if not watched.current().by_name:
        raise ConfigError(f"security.api_keys = {file!r}: it holds no key, so nobody could call; see bon keys new")
    return watched


def read_keys(path: Path) -> Keys:
    """Raises `ConfigError`, which names the entry."""
    try:
        return parse_keys(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ConfigError(f"cannot read the API keys {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the API keys {str(path)!r} are not UTF-8") from None


def parse_keys(text: str, path: Path) -> Keys:
    """Raises `ConfigError`, which names the file and the entry."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the API keys {str(path)!r} are not TOML: {error}") from None
    if document.keys() - {"key"} or not isinstance(document.get("key", []), list):
        raise ConfigError(f"the API keys {str(path)!r} have something else in them than [[key]] tables")
    by_name: dict[str, tuple[Key, ...]] = {}
    for number, entry in enumerate(document.get("key", []), 1):
        try:
            key = _checked(entry)
            if key.name in by_name and by_name[key.name][0].quota != key.quota:
                raise ValueError(f"keys of the name {key.name!r} have different quotas; they share one")
        except ValueError as error:  # msgspec's is one too
            raise ConfigError(f"the API keys {str(path)!r}, entry {number}: {error}") from None
        by_name[key.name] = (*by_name.get(key.name, ()), key)
    return Keys(by_name)


def _checked(entry: Any) -> Key:
    key = msgspec.convert(entry, Key)
    check_name(key.name)
    if not re.fullmatch("[0-9a-f]{64}", key.sha256):
        raise ValueError("sha256 is not 64 hexadecimal digits in lower case")
    if not key.rights:
        raise ValueError(f"rights is empty; allowed are {', '.join(Right)}")
    return key


def check_name(name: str) -> None:
    """Raises ValueError."""
    if not re.fullmatch(NAME, name) or name in RESERVED:
        raise ValueError(
            f"name = {name!r}: allowed are 1 to 64 letters, digits, '-' and '_', and not {', '.join(RESERVED)}"
        )


def new_key(name: str) -> tuple[str, str]:
    """A key, which is shown once, and its SHA-256, which is kept."""
    key = f"{name}.{secrets.token_urlsafe(32)}"
    return key, _sha256(key)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


HEADER = "# API keys of a BoN server: no key is in here, only the SHA-256 of each. See docs/security.md.\n"


def add_key(path: Path, name: str, rights: Sequence[str], quota: Quota) -> str:
    """Returns the new key, which is kept nowhere. Makes the file, for its owner only, where there is none.

    A second key of a name gets the quota of the first, unless it is given again. Raises `ConfigError`.
    """
    chosen = _rights(rights)
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    text, known = (path.read_text(encoding="utf-8"), read_keys(path)) if path.exists() else (HEADER, Keys({}))
    if name in known.by_name:
        if quota not in (Quota(), known.quota(name)):
            raise ConfigError(f"{name!r} has the quota {known.quota(name)} already; change it in {str(path)!r}")
        quota = known.quota(name)
    key, sha256 = new_key(name)
    _write(path, f"{text.rstrip()}\n\n{_entry(name, sha256, chosen, quota)}")
    return key


def revoke(path: Path, name: str) -> int:
    """Takes out all keys of a name; how many there were. Raises `ConfigError`."""
    known = len(read_keys(path).by_name.get(name, ()))
    head, *entries = re.split(r"(?m)^(?=[ \t]*\[\[[ \t]*key[ \t]*\]\])", path.read_text(encoding="utf-8"))
    kept = [entry for entry in entries if tomllib.loads(entry)["key"][0]["name"] != name]
    if len(entries) - len(kept) != known:
        raise ConfigError(f"{str(path)!r} is not written as [[key]] tables: take {name!r} out by hand")
    if known:
        _write(path, head + "".join(kept))
    return known


def _rights(names: Sequence[str]) -> list[Right]:
    try:
        rights = [Right(name) for name in names]
    except ValueError as error:
        raise ConfigError(f"--rights: {error}; allowed are {', '.join(Right)}") from None
    if not rights:
        raise ConfigError(f"--rights: none given; allowed are {', '.join(Right)}")
    return rights


def _entry(name: str, sha256: str, rights: Sequence[Right], quota: Quota) -> str:
    lines = [
        "[[key]]",
        f'name = "{name}"',
        f'sha256 = "{sha256}"',
        f"rights = [{', '.join(f'{chr(34)}{right}{chr(34)}' for right in rights)}]",
        *(f"{each} = {value}" for each, value in _limits(quota).items() if value is not None),
        f"created = {date.today()}",
    ]
    return "\n".join(lines) + "\n"


def _limits(quota: Quota) -> dict[str, int | None]:
    return {
        "candidates_per_minute": quota.candidates_per_minute,
        "tokens_per_minute": quota.tokens_per_minute,
    }


def _write(path: Path, text: str) -> None:
    """The server may run as another user: who could read the file can read the new one."""
    parse_keys(text, path)
    path = path.resolve()
    with whole_file(path) as file:
        if path.exists():
            status = path.stat()
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
        file.write(text.encode())
