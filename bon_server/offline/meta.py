"""The sidecar `meta.parquet`: where each chosen candidate is from, in the order of the training set.

`file` and `line` (from 0) say where it went. Each file's piece is written with it; all are joined at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bon_server.log.whole_file import whole_file
from bon_server.offline.formats import FORMATS
from bon_server.offline.plan import Plan
from bon_server.offline.rows import LINE, Rows, firsts
from bon_server.selection import OfflineRule

META_NAME = "meta.parquet"
META_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("role", pa.string()),  # of pairs: chosen or rejected
        ("rank", pa.int64()),
        ("weight", pa.float64()),
        ("prompt_hash", pa.string()),
        ("log", pa.string()),
        ("writer", pa.int32()),
        ("ordinal", pa.int64()),
        ("principal", pa.string()),
        ("request_id", pa.string()),
        ("attempt", pa.int32()),
        ("kind", pa.string()),
        ("n", pa.int32()),
        ("candidate_index", pa.int32()),
        ("reward", pa.float64()),
        ("value", pa.float64()),  # what was compared: the reward, normalised if that was asked for
        ("finish_reason", pa.string()),
        ("completion_tokens", pa.int64()),
        ("policy_id", pa.string()),
        ("policy_revision", pa.string()),
    ]
)
_ROLES = pa.array(["chosen", "rejected"])


def lines_of(plan: Plan, picks: Rows) -> Any:
    """(p,) the line of each pick in its file."""
    if FORMATS[plan.format].line_per_candidate:
        return np.arange(len(picks))
    return np.cumsum(firsts(picks, *LINE)) - 1


def meta_table(plan: Plan, name: str, picks: Rows, table: Any) -> Any:
    """(p,) rows. name: of the file; table: what `fetch` returned."""
    count = len(picks)
    pairs = plan.rule.name.shape is OfflineRule.PAIRS
    own = pc.fill_null(table["policy_revision"], "")
    logs = {writer: plan.log_of(writer).name for writer in np.unique(picks["writer"]).tolist()}
    columns = {
        "file": pa.repeat(name, count),
        "line": lines_of(plan, picks),
        "role": _ROLES.take(pa.array(picks["role"])) if pairs else pa.nulls(count, pa.string()),
        "log": pa.array([logs[writer] for writer in picks["writer"].tolist()], pa.string()),
        "candidate_index": picks["index"],
        "policy_revision": pc.if_else(pc.equal(own, ""), table["request_policy_revision"], own),
    }
    columns |= {name: picks[name] for name in ("rank", "weight", "writer", "ordinal", "value")}
    kept = set(META_SCHEMA.names) - set(columns)
    columns |= {name: table[name] for name in kept}
    return pa.Table.from_pydict({field.name: columns[field.name] for field in META_SCHEMA}, META_SCHEMA)


def _piece(work: Path, number: int) -> Path:
    return work / f"meta-{number:05d}.arrow"


def write_piece(work: Path, number: int, table: Any) -> None:
    """table: None for no rows."""
    table = META_SCHEMA.empty_table() if table is None else table
    with whole_file(_piece(work, number)) as file, pa.ipc.new_file(file, META_SCHEMA) as writer:
        writer.write_table(table)


class MetaWriter:
    """Joins the pieces, in the order in which they are added."""

    def __init__(self, file: Any, work: Path) -> None:
        self._parquet = pq.ParquetWriter(file, META_SCHEMA, compression="zstd")
        self._work = work

    def add(self, number: int) -> None:
        """A piece makes a row group."""
        with pa.OSFile(str(_piece(self._work, number))) as file:
            self._parquet.write_table(pa.ipc.open_file(file).read_all())

    def close(self) -> None:
        """Completes the file."""
        self._parquet.close()
