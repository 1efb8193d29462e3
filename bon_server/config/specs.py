"""Specs of the command line: models with options, `synthetic:tokens=40,fail_rate=0.1`, and the operator's own code."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from bon_server.config.numbers import numbers
from bon_server.core.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def parse_options(spec: str, options_type: type[Options]) -> Options:
    """The options after the first colon of `spec` as an `options_type`, a frozen dataclass with defaults."""
    kind, _, listed = spec.partition(":")
    values = {}
    for item in filter(None, listed.split(",")):
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(f"{spec!r}: {item!r} is not of the form key=value")
        values[key] = value
    known = [option.name for option in fields(options_type)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{spec!r}: {kind} has no option {key!r}; it has {', '.join(known)}")
    try:
        return msgspec.convert(values, options_type, strict=False)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        key = place.rstrip("`")
        allowed = numbers(options_type).get(key)
        asked = "" if allowed is None else f"; allowed is {allowed}"
        raise ConfigError(f"{spec!r}: {key}: {problem[0].lower()}{problem[1:]}{asked}") from None


def import_module(what: str, module_name: str) -> Any:
    """A module of the operator's, looked for as `python -m` would: in the current directory first.

    what: begins the message of the `StartupError` for a module that is not there or cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to our commands
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise StartupError(f"{what}: there is no module {module_name} in {here} or installed") from error
        raise StartupError(f"{what}: {module_name} needs the module {error.name}, which is missing") from error
    except KeyboardInterrupt:
        raise  # the operator's, at a terminal
    except BaseException as error:
        raise StartupError(f"{what}: importing {module_name} raised {type(error).__name__}") from error


def split_name(entry: str) -> tuple[str, str]:
    """`helpful=org/model` → (`helpful`, `org/model`); without a name: `default`.

    An `=` belongs to the name only if it comes before any `:` or `/`, since options and paths have them too.
    """
    head, separator, spec = entry.partition("=")
    if separator and ":" not in head and "/" not in head:
        return head, spec
    return "default", entry


def model_of(spec: str) -> str:
    """`vllm:org/model` and `org/model` → `org/model`."""
    return spec.removeprefix("vllm:")


def is_kind(spec: str, kind: str) -> bool:
    """Whether it is `kind` or `kind:...`."""
    return spec == kind or spec.startswith(f"{kind}:")
