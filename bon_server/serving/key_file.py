"""Changes to a file of API keys: it appears whole each time, and what people wrote into it stays."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from bon_server.errors import ConfigError
from bon_server.log.whole_file import whole_file
from bon_server.serving.keys import Keys, Quota, Right, check_name, new_key, parse_keys, read_keys

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
