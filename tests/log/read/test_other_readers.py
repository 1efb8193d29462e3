"""What docs/reading-the-log.md shows, run as it stands there, on a real log."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from bon_server.core.types import Candidate, CandidateStatus, FinishReason
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.spool.spool import Spool
from tests.log.records import ODD_TEXT, record
from tests.log.seal.test_sealing import seal

PAGE = Path(__file__).parents[3] / "docs" / "reading-the-log.md"
REQUESTS = 12
UNSCORED = Candidate(0, text="…", status=CandidateStatus.CANCELLED, finish_reason=FinishReason.CANCELLED)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Sealed records of two dates, with best rewards of 0.5, 1.5, 2.5, … and one without; one more in the spool."""
    day = datetime(2026, 11, 22, tzinfo=UTC)
    with closing(Spool.open(tmp_path / "log")) as spool:
        for i in range(REQUESTS):
            prompt = {"prompt_text": ODD_TEXT} if i % 2 else {}
            rewards = (i - 1.0, i + 0.5)
            spool.append(
                [record(f"r{i}", rewards, created_at=day + timedelta(days=i % 2), tags={"team": ODD_TEXT}, **prompt)]
            )
        spool.append([record("without", tags={"team": ODD_TEXT}, created_at=day, candidates=(UNSCORED,))])
        seal(spool)
        spool.append([record("unsealed")])
    return tmp_path / "log"


def _run(title: str, log: Path) -> dict[str, Any]:
    """Runs the example under a title; returns its variables."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    variables: dict[str, Any] = {}
    exec(example[1].replace("LOG", str(log)), variables)
    return variables


BEST = {f"r{i}": i + 0.5 for i in range(REQUESTS)} | {"without": None}


def test_duckdb(log: Path) -> None:
    shown = _run("DuckDB", log)
    assert dict(shown["best"].fetchall()) == BEST
    duckdb = shown["duckdb"]
    columns = duckdb.execute(
        "SELECT map_from_entries(tags)['team'], date, ordinal, created_at FROM read_parquet(?) WHERE request_id = 'r3'",
        [f"{log}/segments/**/*.parquet"],
    ).fetchone()
    assert columns[0] == ODD_TEXT and str(columns[1]) == "2026-11-23" and columns[2] == 4


def test_polars(log: Path) -> None:
    shown = _run("Polars", log)
    assert dict(shown["best"].iter_rows()) == BEST
    tags = shown["log"].collect()["tags"].to_list()
    assert tags == [[{"key": "team", "value": ODD_TEXT}]] * len(BEST)


def test_datasets(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    shown = _run("datasets", log)
    assert {row["request_id"]: row["reward"] for row in shown["best"]} == BEST
    assert shown["log"][0]["tags"] == [{"key": "team", "value": ODD_TEXT}]


def test_our_own_reader_sees_the_spool_too(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("From Python, with unsealed records", log)
    assert sum(map(int, capsys.readouterr().out.split())) == len(BEST) + 1


def test_what_a_snapshot_pins(log: Path) -> None:
    make_snapshot(log, "NAME")
    assert sorted(_run("Snapshots", log)["ids"]) == sorted(BEST)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-engines has it")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray about itself
def test_ray_data(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        shown = _run("Ray Data", log)
        assert {row["request_id"]: row["reward"] for row in shown["best"].take_all()} == BEST
        (third,) = (row for row in shown["log"].take_all() if row["request_id"] == "r3")
    finally:
        ray.shutdown()
    assert list(third["tags"]) == [{"key": "team", "value": ODD_TEXT}] and str(third["date"]) == "2026-11-23"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(find_spec("pyspark") is None, reason="Spark is not installed; make test-engines has it")
@pytest.mark.skipif(which("java") is None, reason="Spark needs Java")
def test_spark(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        shown = _run("Spark", log)
        assert {row["request_id"]: row["reward"] for row in shown["best"].collect()} == BEST
        (third,) = shown["log"].where("request_id = 'r3'").collect()
    finally:
        session.stop()
    assert [tag["value"] for tag in third["tags"]] == [ODD_TEXT] and str(third["date"]) == "2026-11-23"
