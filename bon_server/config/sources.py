"""Where settings come from: a TOML file, the environment, the command line. What settings there are, `config` says."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from bon_server.config.numbers import Range, numbers
from bon_server.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Tree = dict[str, dict[str, Any]]
"""Section, key and value."""
Sections = Mapping[str, Sequence[str]]
"""The keys that there are, by section."""


def read_settings(
    kind: type[Settings], file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Settings:
    """Merges the sources, of which the later one wins. Raises `ConfigError`.

    kind: a dataclass of sections, which are dataclasses; all of it has defaults. flags: `section.key` and value.
    """
    defaults = kind()
    sections = {
        section.name: [key.name for key in fields(getattr(defaults, section.name))] for section in fields(defaults)
    }
    merged: Tree = {}
    for source in (_from_file(file, sections), _from_environment(environment, sections), _from_flags(flags)):
        for section, values in source.items():
            merged.setdefault(section, {}).update(values)
    _refuse_unknown(merged, sections)
    try:
        return msgspec.convert(merged, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_with_value(str(error), merged, numbers(kind))) from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """`["limits.max_n=64"]` → `{"limits.max_n": "64"}`, as `--set` gives them."""
    pairs = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or key.count(".") != 1:
            raise ConfigError(f"--set {assignment!r} is not of the form section.key=value")
        pairs[key] = value
    return pairs


def _from_file(file: Path | None, sections: Sections) -> Tree:
    if file is None:
        return {}
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {str(file)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {str(file)!r} is not TOML: {error}") from None
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{section!r} in {str(file)!r} is not a table; keys belong into {list(sections)}")
    return tree


def _from_environment(environment: Mapping[str, str], sections: Sections) -> Tree:
    tree: Tree = {}
    for name, value in environment.items():
        section, separator, key = name.removeprefix("BON_").lower().partition("_")
        if not (name.startswith("BON_") and separator):
            continue
        if section in sections:
            tree.setdefault(section, {})[key] = value
        elif meant := get_close_matches(section, sections, n=1, cutoff=0.8):
            raise ConfigError(f"{name} in the environment: unknown section {section!r}; did you mean {meant[0]!r}?")
    return tree


def _from_flags(flags: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for name, value in flags.items():
        section, _, key = name.partition(".")
        if value is not None:
            tree.setdefault(section, {})[key] = value
    return tree


def _refuse_unknown(tree: Tree, sections: Sections) -> None:
    for section, values in tree.items():
        if section not in sections:
            raise ConfigError(f"unknown section {section!r}; there are {', '.join(sections)}")
        for key in values:
            if key not in sections[section]:
                raise ConfigError(f"unknown key {section}.{key}; {section} has {', '.join(sections[section])}")


def _with_value(message: str, tree: Tree, ranges: Mapping[str, Range]) -> str:
    """msgspec names the place and what is allowed; this adds the value that was given."""
    problem, _, place = message.partition(" - at `$.")
    section, _, key = place.rstrip("`").partition(".")
    key = key.partition("[")[0]
    given = tree.get(section, {}).get(key)
    allowed = ranges.get(f"{section}.{key}")
    asked = "" if allowed is None else f"; allowed is {allowed}"
    return f"{section}.{key} = {given!r}: {problem[0].lower()}{problem[1:]}{asked}"
