"""Segments of every schema version there ever was can be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bon_server.log.read.reader import LogReader
from bon_server.log.record import SCHEMA_VERSION
from bon_server.log.segments.columns import SCHEMA
from bon_server.log.segments.files import SegmentName, file_of
from bon_server.log.verify.verify import verify
from tests.log.segments.make_golden import FOLDER, golden_records

VERSIONS = sorted(FOLDER.glob("version_*.parquet"))


def _log_of(golden: Path, folder: Path) -> Path:
    file = folder / file_of(SegmentName("2026-11-22", "golden", 1, 3))
    file.parent.mkdir(parents=True)
    shutil.copy(golden, file)
    return folder


def test_there_is_one_of_this_version() -> None:
    assert FOLDER / f"version_{SCHEMA_VERSION}.parquet" in VERSIONS


@pytest.mark.parametrize("golden", VERSIONS, ids=lambda path: path.stem)
def test_golden_files_are_read(golden: Path, tmp_path: Path) -> None:
    log = _log_of(golden, tmp_path / "log")
    with LogReader(log) as reader:
        assert list(reader.records()) == golden_records()
        assert all(batch.schema.equals(SCHEMA) for batch in reader.batches())
    assert verify(log)["ok"]
