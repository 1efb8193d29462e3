"""A filter of the user's: `module:function`, called for each candidate that passed the others.

    def function(record: Record, candidate: Candidate) -> bool

It must not depend on anything but its arguments, or the selection cannot be made again. It runs with the rights of the
command, in several threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bon_server.errors import ConfigError
from bon_server.log.record import Record
from bon_server.log.rows import from_batch
from bon_server.operator_code.guard import told
from bon_server.specs import import_module


@cache
def load_predicate(spec: str) -> Callable[..., Any]:
    """Raises `ConfigError` for what is not `module:function`, and `StartupError` when there is no such module."""
    module_name, separator, function_name = spec.partition(":")
    if not separator or not module_name or not function_name:
        raise ConfigError(f"predicate: {spec!r} given; expected module:function")
    function = getattr(import_module(f"predicate {spec!r}", module_name), function_name, None)
    if not callable(function):
        raise ConfigError(f"predicate: {spec!r} given; the module {module_name} has no function {function_name!r}")
    found: Callable[..., Any] = function
    return found


def says_no(
    spec: str, batch: Any, row: NDArray[np.int64], index: NDArray[np.int64], ask: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(m,) those candidates, of those in `ask`, that the function refuses.

    batch: (n,) whole records. row, index: (m,) which record, which of its candidates. Raises `ConfigError` when the
    function raises, naming the kind of error and not its message, which may quote a completion.
    """
    function = load_predicate(spec)
    refused = np.zeros(len(row), dtype=np.bool_)
    wanted = np.unique(row[ask])
    records = dict(from_batch(batch.take(pa.array(wanted)), Record)) if len(wanted) else {}
    ordinals = batch["ordinal"].to_pylist()
    for position in np.flatnonzero(ask).tolist():
        record = records[ordinals[row[position]]]
        try:
            refused[position] = not function(record, record.candidates[index[position]])
        except KeyboardInterrupt:
            raise  # the user's, at a terminal
        except BaseException as error:  # noqa: BLE001 -- the user's code may raise anything
            raise ConfigError(f"predicate {spec!r} raised {told(error)}, at row {record.ordinal}") from None
    return refused
