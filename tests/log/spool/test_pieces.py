"""No transaction grows with the log: commits wait for one that deletes a few hundred rows, not for a million."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from bon_server.config.settings import LogConfig
from bon_server.log import catalog
from bon_server.log.catalog import Sealed, SealedFeedback
from bon_server.log.feedback import record_feedback
from bon_server.log.publish.publisher import publish_all
from bon_server.log.remove import erase as erase_module
from bon_server.log.remove.erase import erase
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.remove.rewrite import Match
from bon_server.log.spool import database as database_module
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.spool.pieces import PIECE_ROWS, forget_overdue, pieces
from bon_server.log.spool.spool import Spool
from bon_server.log.spool.writer import Writer
from tests.log.observations import observation
from tests.log.records import record
from tests.log.seal.test_sealing import seal

MANY = 3 * PIECE_ROWS + 7


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each transaction of a spool changes."""
    changed: list[int] = []
    original = Writer.transaction

    def counting(self: Writer, change: Callable[[apsw.Connection], Any]) -> Any:
        before = self._database.total_changes()
        result = original(self, change)
        changed.append(self._database.total_changes() - before)
        return result

    monkeypatch.setattr(Writer, "transaction", counting)
    return changed


def _count(folder: Path, table: str) -> int:
    with closing(open_for_reading(folder / SPOOL_NAME)) as reading:
        count: int = reading.execute(f"SELECT count(*) FROM {table}").get
        return count


def _remember(spool: Spool, keep_until_us: int, prefix: str = "r") -> None:
    sealed = [Sealed("", f"{prefix}{i}", 1, "ok", "", True, i, keep_until_us) for i in range(MANY)]
    said = [SealedFeedback("", f"{prefix}{i}", b"", i, keep_until_us) for i in range(MANY)]
    spool.transaction(partial(catalog.remember, records=sealed))
    spool.transaction(partial(catalog.remember_feedback, observations=said))


def test_ids_that_are_over_together_are_forgotten_in_pieces(tmp_path: Path, rows: list[int]) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        _remember(spool, 1)
        _remember(spool, 1 << 60, "kept")
        rows.clear()
        forget_overdue(spool)
        assert max(rows) <= PIECE_ROWS and sum(rows) == 2 * MANY
        assert _count(tmp_path, "sealed") == _count(tmp_path, "sealed_feedback") == MANY
        rows.clear()
        forget_overdue(spool)
        assert rows == []


@pytest.mark.parametrize("how", ["sealing", "publishing"])
def test_by_whom_ever(tmp_path: Path, rows: list[int], how: str) -> None:
    with closing(Spool.open(tmp_path / "log")) as spool:
        _remember(spool, 1)
        rows.clear()
        if how == "sealing":
            seal(spool)
        else:
            publish_all(spool, LogConfig(publish=f"file://{tmp_path}/store", publish_keep_local=False), 0.0)
        assert max(rows) <= PIECE_ROWS and _count(tmp_path / "log", "sealed") == 0


def test_ids_of_what_expires_are_forgotten_in_pieces(tmp_path: Path, rows: list[int]) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}") for i in range(MANY)])
        seal(spool)
        rows.clear()
        assert expire(spool, Retention(None, 1)).records == MANY
        assert max(rows) <= PIECE_ROWS and sum(rows) >= MANY and _count(tmp_path, "sealed") == 0


def test_many_files_expire_in_pieces(tmp_path: Path, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bon_server.log.spool.pieces.PIECE_ROWS", 4)
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}") for i in range(10)])
        seal(spool, seal_bytes=1)
        rows.clear()
        assert expire(spool, Retention(None, 1)).segments == 10
        assert max(rows) <= 2 * 4, "each file leaves one table and enters another"


@pytest.mark.parametrize("sealed", [False, True])
def test_an_erasure_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}", tags={"who": "wanda"}) for i in range(MANY)])
        for i in range(PIECE_ROWS + 3):
            record_feedback(spool, observation(f"f{i}", f"r{i}"))
        if sealed:
            seal(spool)
    changed: list[int] = []
    opened = database_module.open_for_writing

    def counting(folder: Path) -> apsw.Connection:
        database = opened(folder)
        before = [database.total_changes()]

        def committed() -> bool:
            changed.append(database.total_changes() - before[0])
            before[0] = database.total_changes()
            return False

        database.set_commit_hook(committed)
        return database

    monkeypatch.setattr(erase_module, "open_for_writing", counting)
    assert erase(tmp_path, Match(tag=("who", "wanda")))["records"] == MANY
    assert max(changed) <= PIECE_ROWS
    assert _count(tmp_path, "records") == _count(tmp_path, "sealed") == _count(tmp_path, "feedback") == 0


def test_pieces_are_all_in_order() -> None:
    assert [one for some in pieces(range(MANY)) for one in some] == list(range(MANY))
    assert [len(some) for some in pieces(range(MANY))] == [PIECE_ROWS] * 3 + [7] and list(pieces([])) == []
