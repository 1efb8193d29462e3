"""The reward to choose by: the logged one, an added score, or a part of the logged ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.log.added_scores import KEY, NOT_THERE, STATUSES, join
from bon_server.offline.plan import File, Plan
from bon_server.types import CandidateStatus

NOT_RESCORED = "not_rescored"
"""Instead of a status: the log has the added score, but not of this candidate."""
_NAMES = [*map(str, STATUSES), NOT_RESCORED]


@dataclass(frozen=True, slots=True)
class Rewards:
    """Of the candidates of a batch, (m,) each."""

    values: NDArray[np.float64]
    """NaN where there is none."""
    status: Any
    """Arrow strings: `CandidateStatus` or `NOT_RESCORED`."""


def rewards_of(plan: Plan, file: File, batch: Any, lengths: NDArray[np.int64], damage: list[str]) -> Rewards:
    """The rewards to choose by. lengths: (n,) candidates of each row. damage: gets files of scores left out."""
    name, flat = plan.filters.reward, batch["candidates"].flatten()
    if name is None:
        return Rewards(flat.field("reward").to_numpy(zero_copy_only=False), flat.field("status"))
    if file.scores is not None:
        values, codes = join(file.scores, batch, lengths, lambda _, error: damage.append(str(error)))
        positions = np.where(codes == NOT_THERE, len(STATUSES), codes).astype(np.int8)
        return Rewards(values, pa.DictionaryArray.from_arrays(positions, _NAMES).dictionary_decode())
    values = _part(flat.field("rewards"), name)
    scored = pa.array(np.isfinite(values), pa.bool_())
    return Rewards(values, pc.if_else(scored, str(CandidateStatus.SCORED), str(CandidateStatus.UNSCORED)))


def _part(rewards: Any, name: str) -> NDArray[np.float64]:
    """(m,) the value of a key in lists of keys with values, NaN where it is not."""
    lengths = rewards.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    entries = rewards.flatten()
    chosen = pc.equal(entries.field("key"), name).to_numpy(zero_copy_only=False)
    values = np.full(len(rewards), np.nan)
    values[np.repeat(np.arange(len(rewards)), lengths)[chosen]] = entries.field("value").to_numpy(False)[chosen]
    return values


def columns(plan: Plan) -> list[str]:
    """The columns of a record that `rewards_of` looks at."""
    if plan.filters.reward is None:
        return []
    return [*KEY, "candidates.reward", "candidates.status", "candidates.rewards"]
