"""Model specs of the command line that carry options: `synthetic:tokens=40,fail_rate=0.1`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import msgspec

from bon_server.errors import ConfigError

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
        raise ConfigError(f"{spec!r}: {error}") from None
