"""A selection is the same, byte for byte, however the log lies in files, whoever runs it, wherever it was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from bon_server.core.selection import OfflineRule
from bon_server.core.types import CandidateStatus, FinishReason, Message, ModelRef
from bon_server.log.record import Record
from bon_server.log.segments.columns import to_batch
from bon_server.log.segments.files import SegmentsWriter
from bon_server.log.spool.spool import Spool
from bon_server.offline.select import plan
from bon_server.offline.select.manifest import Manifest
from bon_server.offline.select.options import Filters, Written
from bon_server.offline.select.select import SelectOptions, select
from tests.log.records import record, scored
from tests.log.seal.test_sealing import seal

RULES: list[dict[str, Any]] = [
    *({"rule": name} for name in (OfflineRule.BEST_PER_PROMPT, OfflineRule.RANDOM_BEST_PER_PROMPT)),
    *({"rule": name, "k": 17} for name in (OfflineRule.TOP_K_OVERALL, OfflineRule.RANDOM_TOP_K_OVERALL)),
    {"rule": OfflineRule.TOP_K_OVERALL, "k": 17, "max_per_prompt": 2, "format": "grouped"},
    *({"rule": name, "k": 2} for name in (OfflineRule.TOP_K_PER_PROMPT, OfflineRule.RANDOM_SOFT)),
    {"rule": OfflineRule.SOFT, "weights": True, "format": "parquet"},
    {"rule": OfflineRule.THRESHOLD, "quantile": 0.7, "filters": Filters(normalise=True)},
    *({"rule": name, "against": "random"} for name in (OfflineRule.PAIRS, OfflineRule.RANDOM_PAIRS)),
    {
        "rule": OfflineRule.TOP_K_PER_PROMPT,
        "k": 3,
        "format": "grouped",
        "filters": Filters(duplicates="normalised", min_n=3, min_spread=0.2, keep_truncated=True),
    },
    {"rule": OfflineRule.BEST_PER_PROMPT, "filters": Filters(merge=False), "written": Written(compression="zstd")},
]


def records(count: int = 60) -> list[Record]:
    """Ragged, with ties, missing rewards and equal texts; many requests of few prompts, chats and texts."""
    made = []
    for ordinal in range(1, count + 1):
        draw = random.Random(ordinal)
        candidates = [
            scored(i, draw.randrange(8) / 8, text=f"answer {draw.randrange(5)}") for i in range(draw.randrange(6))
        ]
        candidates = [
            structs.replace(one, status=CandidateStatus.NON_FINITE, reward=None) if draw.random() < 0.1 else one
            for one in candidates
        ]
        candidates = [
            structs.replace(one, finish_reason=FinishReason.LENGTH) if draw.random() < 0.1 else one
            for one in candidates
        ]
        name = f"prompt {draw.randrange(25)}"
        prompt: dict[str, Any] = {"prompt_messages": (Message("user", name),)}
        if name.endswith("3"):
            prompt = {"prompt_messages": None, "prompt_text": name}
        one = record(f"r{ordinal}", candidates=tuple(candidates), **prompt)
        made.append(replace(one, ordinal=ordinal, created_at=one.created_at + timedelta(hours=ordinal)))
    return made


def write_log(folder: Path, some: Sequence[Record], sizes: Sequence[int], shuffler: random.Random | None) -> None:
    """Segments of so many rows, each in any order, without a spool; `writer` is one and the same."""
    rest = list(some)
    for size in sizes:
        rows, rest = rest[:size], rest[size:]
        if shuffler is not None:
            shuffler.shuffle(rows)
        ordinals = [one.ordinal or 0 for one in rows]
        with SegmentsWriter(folder, "writer", min(ordinals), max(ordinals)) as writer:
            for row in rows:
                writer.add(row.created_at.date().isoformat(), to_batch([row]))
    assert not rest


def training_set(out: Path) -> dict[str, bytes]:
    """All files but the manifest, which names the files that were read."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "manifest.json"}


def chosen(log: Path, out: Path, **options: Any) -> tuple[dict[str, bytes], Any]:
    manifest: Manifest = select(SelectOptions((log,), out=out, **options))
    told = {name: value for name, value in manifest.items() if name not in ("inputs",)}
    return training_set(out), told


@pytest.mark.parametrize("options", RULES, ids=lambda options: f"{options['rule']}-{options.get('format', '')}")
def test_files_batches_tasks_and_threads_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    log = tmp_path / "log"
    write_log(log, records(), [60], None)
    whole = chosen(log, tmp_path / "whole", **options)
    assert whole[1]["counts"]["selected"] > 10
    log.rename(tmp_path / "before")
    write_log(log, records(), [1, 7, 30, 2, 20], random.Random(1))
    assert chosen(log, tmp_path / "files", **options) == whole
    monkeypatch.setattr(plan, "TASK_RECORDS", 8)
    monkeypatch.setattr(plan, "BUCKET_RECORDS", 4)
    monkeypatch.setattr(plan, "RANGE_ORDINALS", 4)
    assert chosen(log, tmp_path / "tasks", threads=5, **options) == whole


@pytest.mark.parametrize("options", RULES[::5], ids=lambda options: str(options["rule"]))
def test_sealing_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    """All in the spool, half of it sealed, all sealed."""
    log, some = tmp_path / "log", [replace(one, ordinal=None) for one in records()]
    with closing(Spool.open(log)) as spool:
        spool.append(some)
    unsealed = chosen(log, tmp_path / "unsealed", **options)
    with closing(Spool.open(tmp_path / "half" / "log")) as spool:
        spool.append(some[:31])
        seal(spool)
        spool.append(some[31:])
    half = chosen(tmp_path / "half" / "log", tmp_path / "half-out", **options)
    with closing(Spool.open(log)) as spool:
        seal(spool)
    assert chosen(log, tmp_path / "sealed", **options) == unsealed
    names = [name for name in half[0] if name.startswith("part-")]
    assert {name: half[0][name] for name in names} == {name: unsealed[0][name] for name in names}


def test_the_best_of_all_rounds_is_kept(tmp_path: Path) -> None:
    """Three logs of the same prompts: as from one log that has them all."""
    everything = [replace(one, request_id=f"{one.request_id}") for one in records()]
    rounds = (everything[:20], everything[20:40], everything[40:])
    for number, some in enumerate(rounds):
        write_log(tmp_path / f"round{number}", some, [len(some)], None)
    write_log(tmp_path / "log", everything, [60], None)
    logs = tuple(tmp_path / f"round{number}" for number in range(3))
    for rule in (OfflineRule.BEST_PER_PROMPT, OfflineRule.PAIRS):
        several = select(SelectOptions(logs, rule, tmp_path / f"several-{rule}"))
        one, _ = chosen(tmp_path / "log", tmp_path / f"one-{rule}", rule=rule)
        assert several["counts"]["selected"] > 15
        assert training_set(tmp_path / f"several-{rule}")["part-00000.jsonl"] == one["part-00000.jsonl"]


def test_normalised_values_do_not_depend_on_the_order_of_sums(tmp_path: Path) -> None:
    """Rewards of very different sizes, whose sum in another order rounds otherwise."""
    some = [
        replace(
            record(f"r{i}", (0.1 * 3**i, -(7.0**i), 1e-9 * i), reward_models=(ModelRef("reward", "rm", str(i % 2)),)),
            ordinal=i + 1,
            prompt_hash=f"{i:064x}",
        )
        for i in range(20)
    ]
    outs = []
    for name, sizes in (("one", [20]), ("two", [3, 9, 8])):
        write_log(tmp_path / name / "log", some, sizes, random.Random(3))
        options = SelectOptions(
            (tmp_path / name / "log",),
            OfflineRule.TOP_K_OVERALL,
            tmp_path / name / "out",
            k=20,
            filters=Filters(normalise=True),
        )
        manifest = select(options)
        outs.append((manifest["reward_models"], (tmp_path / name / "out" / "part-00000.jsonl").read_bytes()))
    assert outs[0] == outs[1]


KILLED = """
import sys, time
from pathlib import Path
from bon_server.cli import main
renamed, slowly = Path.rename, int(sys.argv.pop(1))
def rename(path, target):
    time.sleep(slowly / 1000)
    return renamed(path, target)
Path.rename = rename
sys.exit(main())
"""


def summaries(work: Path) -> int:
    """How many tasks are done; the folder goes when all are."""
    with suppress(FileNotFoundError):
        return len(list(work.glob("*.json")))
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best-per-prompt", "top-k-overall"])
def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(tmp_path: Path, name: str) -> None:
    """kill −9 again and again, each time a little later, until the command comes to its end."""
    write_log(tmp_path / "log", records(), [20, 20, 20], None)
    k = ["-k", "30"] if name == "top-k-overall" else []

    def command(out: str, slowly: int) -> list[str]:
        words = ["select", "--log", str(tmp_path / "log"), "--rule", name, *k, "--shard-rows", "4"]
        return [sys.executable, "-c", KILLED, str(slowly), *words, "--out", str(tmp_path / out)]

    subprocess.run(command("whole", 0), check=True, capture_output=True, timeout=120)
    kills, left = 0, set()
    while True:
        process = subprocess.Popen(command("out", 60), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        work = tmp_path / "out" / ".selecting"
        known = summaries(work)
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if summaries(work) >= known + 3:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait(100) == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        left |= {path.name for path in work.iterdir()}
    assert kills >= 3 and {"gather-00000.json", "choose-00000.json", "export-00000.json"} <= left
    assert training_set(tmp_path / "out") == training_set(tmp_path / "whole")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    """A local cluster of two workers. In a process of its own, which ends the cluster with it."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    write_log(tmp_path / "log", records(), [20, 20, 20], None)
    for engine in ("local", "ray"):
        words = ["select", "--log", str(tmp_path / "log"), "--rule", "pairs", "--against", "random"]
        words += ["--engine", engine, "--out", str(tmp_path / engine)]
        done = subprocess.run([sys.executable, "-m", "bon_server.cli", *words], capture_output=True, timeout=250)
        assert done.returncode == 0, done.stderr
    assert training_set(tmp_path / "ray") == training_set(tmp_path / "local")
    assert (tmp_path / "ray" / "manifest.json").read_bytes() == (tmp_path / "local" / "manifest.json").read_bytes()
