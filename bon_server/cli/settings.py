"""Flags that stand for settings: type, range, default and help are those that `Config` gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

from bon_server.cli.show import as_default
from bon_server.config.settings import Config

_SEPARATOR = "__"


def settings_flags(flags: Mapping[str, str], paths: Collection[str] = (), kind: Parameter | None = None) -> Any:
    """A dataclass with a field for each setting that has a flag; `given` reads what was given.

    flags: flag by setting, such as `{"listen.port": "--port"}`. paths: those settings that shells complete as files.
    kind: what else all of these flags are, such as their panel.
    """
    made = [_field(setting, flag, setting in paths, kind or Parameter()) for setting, flag in flags.items()]
    flags_of = make_dataclass("SettingsFlags", made, frozen=True, kw_only=True)
    flags_of.__module__ = __name__
    return flags_of


def given(flags: Any) -> dict[str, Any]:
    """Values by `section.key`, as `config.settings.load` takes them; None, or nothing, where a flag was not given."""
    values = {one.name.replace(_SEPARATOR, "."): getattr(flags, one.name) for one in fields(flags)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value != ()}


def _field(setting: str, flag: str, is_path: bool, more: Parameter) -> tuple[str, Any, Any]:
    section, key = setting.split(".")
    of = get_type_hints(Config)[section]
    hint = Path if is_path else get_type_hints(of, include_extras=True)[key]
    default = getattr(of(), key)
    shown = Parameter(name=flag, help=_help(of)[key], show_default=as_default(default) or False, negative=())
    several = isinstance(default, tuple)
    kind = Annotated[hint if several else Optional[hint], more, shown]  # type: ignore[valid-type]  # noqa: UP045
    return setting.replace(".", _SEPARATOR), kind, field(default=() if several else None)


@cache
def _help(section: type) -> dict[str, str]:
    """What the docstrings beside the settings of a section say."""
    return {one.arg_name: " ".join((one.description or "").split()) for one in parse_from_object(section).params}
