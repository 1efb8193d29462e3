"""Which reward models gave the rewards of a batch of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.evaluate.arrow_columns import floats
from bon_server.log.reward_models import reward_model_names
from bon_server.types import ModelRef


class Names(NamedTuple):
    """As `log.reward_models` names them."""

    loose: str
    """Ids joined by +."""
    exact: str
    """The same with revisions."""


@dataclass(frozen=True, slots=True)
class RewardModels:
    """Of m requests."""

    names: list[Names]
    which: NDArray[np.int64]
    """(m,) position in `names`."""

    def named(self, name: str) -> NDArray[np.bool_]:
        """(m,) whether they are called so, by either name."""
        return np.array([name in names for names in self.names], dtype=np.bool_)[self.which]

    def where(self, mask: NDArray[np.bool_]) -> RewardModels:
        """Of these requests only."""
        return RewardModels(self.names, self.which[mask])


def models_of(models: Any) -> RewardModels:
    """From the column `reward_models` of a batch."""
    if not len(models):
        return RewardModels([], np.empty(0, dtype=np.int64))
    if _all_alike(models):
        first = tuple(ModelRef(one["name"], one["id"] or "", one["revision"] or "") for one in models[0].as_py())
        return RewardModels([Names(*reward_model_names(first))], np.zeros(len(models), dtype=np.int64))
    flat = models.flatten()
    ids, revisions = pc.fill_null(flat.field("id"), ""), pc.fill_null(flat.field("revision"), "")
    exact = pc.if_else(pc.equal(revisions, ""), ids, pc.binary_join_element_wise(ids, revisions, "@"))
    lengths = pc.fill_null(models.value_lengths(), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    both = [pc.binary_join(pa.ListArray.from_arrays(offsets, names), "+") for names in (ids, exact)]
    encoded = pc.binary_join_element_wise(*both, "\0").dictionary_encode()
    names = [Names(*pair.split("\0", 1)) for pair in encoded.dictionary.to_pylist()]
    return RewardModels(names, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _all_alike(models: Any) -> bool:
    """Whether each request has one reward model, the same one: as in most logs."""
    flat = models.flatten()
    return bool((floats(models.value_lengths()) == 1).all()) and all(
        pc.count_distinct(flat.field(name), mode="all").as_py() == 1 for name in ("name", "id", "revision")
    )
