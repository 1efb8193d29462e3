"""Options that are said once: a dataclass whose annotations hold the ranges, and whose docstrings are the help.

`bon` makes its flags from these dataclasses (see `cli/`); a program makes the dataclasses itself. Both are held to the
same ranges: `check_values` looks at a whole dataclass, `check_value` at one value or at the word that stands for it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from cyclopts import Group, Parameter, Token
from msgspec import Meta

from bon_server.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
PositiveNumber = Annotated[float, Meta(gt=0)]
NotNegativeNumber = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
RequestsInFlight = Annotated[int, Meta(ge=1, le=10_000)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
CallSeed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""As the field `seed` of a request holds it."""
MOST = 1_000_000_000
"""Highest absolute value of a number whose annotation has no bound on that side. Nothing needs more, and what is far
beyond any use, such as a deadline of a thousand years, would break the first thread or clock that meets it."""

FLAT = Parameter(name="*")
"""The fields of a dataclass are flags of their own names."""


def panel(title: str) -> Parameter:
    """Puts flags under a heading of their own in the help; headings come in the order in which they are made."""
    return Parameter(group=Group.create_ordered(title))


def check_values(options: DataclassInstance) -> None:
    """Raises `ConfigError` for the first value that its annotation does not allow, in dataclasses within as well."""
    for name, hint in _hints(type(options)).items():
        value = getattr(options, name)
        if is_dataclass(value) and not isinstance(value, type):
            check_values(value)
        else:
            check_value(name, value, hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises `ConfigError` for a number or choice that `hint` does not allow. Other types are not looked at.

    value: of that type, or the word of a command line that is to become it, or one of several.
    """
    kind, _ = _core(hint)
    if isinstance(value, str) and get_origin(kind) is tuple:
        hint = get_args(kind)[0]
    _, meta = _core(hint)
    allowed = _allowed(hint)
    if allowed is None:
        return
    try:
        read = msgspec.convert(value, hint, strict=not isinstance(value, str))
        good = not isinstance(read, int | float) or _is_bounded(read, meta)
    except msgspec.ValidationError:
        good = False
    if not good:
        raise ConfigError(f"{name}: {value!r} given; allowed are {allowed}")


def key_value(word: str) -> tuple[str, str]:
    """The two halves of KEY=VALUE. Raises `ConfigError`."""
    key, separator, value = word.partition("=")
    if not separator:
        raise ConfigError(f"{word!r} given; expected KEY=VALUE")
    return key, value


def read_pairs(_: Any, tokens: Sequence[Token]) -> tuple[tuple[str, str], ...]:
    """Words of a flag that takes KEY=VALUE; the error names the flag."""
    try:
        return tuple(key_value(token.value) for token in tokens)
    except ConfigError as error:
        raise ConfigError(f"{tokens[0].keyword}: {error}") from None


def read_time(_: Any, tokens: Sequence[Token]) -> datetime:
    """The word of a flag that takes a time; UTC unless the word says otherwise."""
    word = tokens[-1].value
    try:
        time = datetime.fromisoformat(word)
    except ValueError:
        raise ConfigError(f"{tokens[-1].keyword}: {word!r} given; expected a time as in 2026-11-30T18:00") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _allowed(hint: Any) -> str | None:
    """What a number or choice may be, in words; None: `hint` is of something else."""
    kind, meta = _core(hint)
    if get_origin(kind) is tuple:
        return _allowed(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(member.value for member in kind)
    if kind not in (int, float):
        return None
    low = f"from {-MOST if meta.ge is None else meta.ge}" if meta.gt is None else f"above {meta.gt}"
    high = f"to {MOST if meta.le is None else meta.le}" if meta.lt is None else f"below {meta.lt}"
    return f"{'whole' if kind is int else 'finite'} numbers {low} {high}"


def _is_bounded(number: float, meta: Meta) -> bool:
    """Whether `MOST` holds on those sides where the annotation has no bound. False for NaN."""
    low = -MOST if meta.ge is None and meta.gt is None else -math.inf
    high = MOST if meta.le is None and meta.lt is None else math.inf
    return low <= number <= high


def _core(hint: Any) -> tuple[Any, Meta]:
    """A type without `Annotated` and None, and the range beside it."""
    meta = Meta()
    while True:
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            meta = next((extra for extra in extras if isinstance(extra, Meta)), meta)
        elif get_origin(hint) in (Union, types.UnionType) and len(some := _not_none(hint)) == 1:
            hint = some[0]
        else:
            return hint, meta


def _not_none(hint: Any) -> list[Any]:
    return [kind for kind in get_args(hint) if kind is not type(None)]
