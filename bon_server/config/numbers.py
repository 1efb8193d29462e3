"""Numeric settings: which there are, and what each may be, read from the types of dataclasses."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec


class Range(NamedTuple):
    """What a number may be."""

    kind: str
    """`integer` or `number`."""
    low: float | None
    """None: without limit; then a wrong value can break what uses it, so no setting should have that."""
    low_is_allowed: bool
    high: float | None
    high_is_allowed: bool

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'from' if self.low_is_allowed else 'above'} {self.low:.15g} "
        high = "" if self.high is None else f"{'to' if self.high_is_allowed else 'to below'} {self.high:.15g}"
        return (
            f"an {self.kind} {low}{high}".rstrip() if self.kind == "integer" else f"a {self.kind} {low}{high}".rstrip()
        )

    def holds(self, value: float) -> bool:
        """Whether a number is allowed. NaN is not."""
        low = self.low is None or value > self.low or (self.low_is_allowed and value == self.low)
        high = self.high is None or value < self.high or (self.high_is_allowed and value == self.high)
        return low and high and (self.kind == "number" or value == int(value))


@cache
def numbers(kind: type) -> dict[str, Range]:
    """The numeric fields of a dataclass and of those in it: `section.key` and range; a mapping counts by its values."""
    found: dict[str, Range] = {}
    for field in getattr(msgspec.inspect.type_info(kind), "fields", ()):
        if isinstance(field.type, msgspec.inspect.DataclassType):
            found |= {f"{field.name}.{name}": one for name, one in numbers(field.type.cls).items()}
        elif (one := _range(field.type)) is not None:
            found[field.name] = one
    return found


def _range(kind: Any) -> Range | None:
    if isinstance(kind, msgspec.inspect.UnionType):
        return next(filter(None, map(_range, kind.types)), None)
    if isinstance(kind, msgspec.inspect.DictType):
        return _range(kind.value_type)
    if not isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        return None
    low, high = (kind.ge if kind.ge is not None else kind.gt), (kind.le if kind.le is not None else kind.lt)
    word = "integer" if isinstance(kind, msgspec.inspect.IntType) else "number"
    return Range(word, low, kind.ge is not None, high, kind.le is not None)
