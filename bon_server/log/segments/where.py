"""Which records to read, as a condition of SQL and as a mask over Arrow columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bon_server.core.types import Kind, Outcome

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Ordinals:
    """A set of ordinals that is quickly asked for those in a range."""

    def __init__(self, ordinals: Iterable[int]) -> None:
        self._sorted = np.unique(np.fromiter(ordinals, dtype=np.int64))

    def __contains__(self, ordinal: int) -> bool:
        return len(self.between(ordinal, ordinal)) == 1

    def between(self, low: int, high: int) -> npt.NDArray[np.int64]:
        """Those in [low, high], rising."""
        return self._sorted[np.searchsorted(self._sorted, low) : np.searchsorted(self._sorted, high, side="right")]


@dataclass(frozen=True, slots=True)
class Where:
    """Which records to read; None: any."""

    after_ordinal: int = 0
    """Only later ones, of each writer."""
    request_id: str | None = None
    kind: Kind | None = None
    outcome: Outcome | None = None
    since: datetime | None = None
    """Only those that began then or later; with time zone."""
    until: datetime | None = None
    """Only those that began before; with time zone."""
    ordinals: Ordinals | None = None
    """Only those with one of these ordinals, whatever the writer."""

    def sql(self) -> tuple[str, list[str | int]]:
        """What follows WHERE but for the ordinals, with its values: conditions on `records`."""
        conditions: list[str] = []
        values: list[str | int] = []
        for column, wanted in {"request_id": self.request_id, "kind": self.kind, "outcome": self.outcome}.items():
            if wanted is not None:
                conditions.append(f"{column} = ?")
                values.append(wanted)
        for comparison, time in {">=": self.since, "<": self.until}.items():
            if time is not None:
                conditions.append(f"created_at_us {comparison} ?")
                values.append((time - _EPOCH) // timedelta(microseconds=1))
        return " AND ".join(conditions or ["TRUE"]), values

    def columns(self) -> list[str]:
        """The columns that `mask` looks at, besides `ordinal`."""
        by_value = {"request_id": self.request_id, "kind": self.kind, "outcome": self.outcome}
        times = ["created_at"] if self.since or self.until else []
        return [column for column, wanted in by_value.items() if wanted is not None] + times

    def mask(self, table: Any, after_ordinal: int, through_ordinal: int | None) -> Any:
        """(rows,) booleans: the rows that are wanted and whose ordinals are in (after, through]."""
        mask = pc.greater(table["ordinal"], max(after_ordinal, self.after_ordinal))
        if through_ordinal is not None:
            mask = pc.and_(mask, pc.less_equal(table["ordinal"], through_ordinal))
        for column, wanted in {"request_id": self.request_id, "kind": self.kind, "outcome": self.outcome}.items():
            if wanted is not None:
                mask = pc.and_(mask, pc.equal(table[column], pa.scalar(wanted, pa.string())))
        if self.since is not None:
            mask = pc.and_(mask, pc.greater_equal(table["created_at"], _time(self.since)))
        if self.until is not None:
            mask = pc.and_(mask, pc.less(table["created_at"], _time(self.until)))
        if self.ordinals is not None:
            low, high = pc.min_max(table["ordinal"]).as_py().values()
            near = pa.array(self.ordinals.between(low, high))
            mask = pc.and_(mask, pc.is_in(table["ordinal"], value_set=near))
        return mask

    def may_hold(self, date: str) -> bool:
        """Whether a segment of a date, YYYY-MM-DD in UTC, can have such records."""
        since = "" if self.since is None else self.since.astimezone(UTC).date().isoformat()
        until = "9999-99" if self.until is None else self.until.astimezone(UTC).date().isoformat()
        return since <= date <= until


EVERYTHING = Where()


def _time(time: datetime) -> Any:
    return pa.scalar(time.astimezone(UTC), pa.timestamp("us", tz="UTC"))
