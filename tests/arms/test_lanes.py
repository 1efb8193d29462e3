"""Parts of a benchmark side by side."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import kl_reward_arms
from benchmarks.arms.lanes import in_lanes
from benchmarks.arms.work import Work
from bon_server.core.errors import ConfigError

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
several_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="lanes need a CPU each")


def write_place(folder: Path, lane: int, lanes: int) -> None:
    place = {"lanes": lanes, "pid": os.getpid(), "cpus": sorted(os.sched_getaffinity(0))}
    (folder / f"{lane}.json").write_text(json.dumps(place))


def fail_or_wait(folder: Path, lane: int, lanes: int) -> None:
    (folder / f"{lane} began").touch()
    if lane == 1:
        while not (folder / "0 began").exists():
            threading.Event().wait(0.01)
        raise ValueError("for the test")
    try:
        threading.Event().wait()
    finally:
        (folder / "tidied up").touch()


@several_cpus
def test_each_lane_is_a_process_with_cpus_of_its_own(tmp_path: Path) -> None:
    in_lanes(2, write_place, tmp_path)
    places = [json.loads((tmp_path / f"{lane}.json").read_text()) for lane in range(2)]
    assert len({os.getpid(), *(place["pid"] for place in places)}) == 3
    assert all(place["lanes"] == 2 and place["cpus"] for place in places)
    assert sorted(places[0]["cpus"] + places[1]["cpus"]) == CPUS
    assert sorted(os.sched_getaffinity(0)) == CPUS


@several_cpus
def test_a_lane_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lane-1 failed"):
        in_lanes(2, fail_or_wait, tmp_path)
    assert (tmp_path / "tidied up").exists()


def test_one_lane_is_done_here(tmp_path: Path) -> None:
    in_lanes(1, write_place, tmp_path)
    place = json.loads((tmp_path / "0.json").read_text())
    assert (place["pid"], place["lanes"]) == (os.getpid(), 1)


@pytest.mark.parametrize("lanes", [0, -1, len(CPUS) + 1])
def test_lanes_that_there_are_no_cpus_for_are_refused(lanes: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"lanes: {lanes} given; allowed are 1 to {len(CPUS)},"):
        in_lanes(lanes, write_place, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_lanes_do_all_seeds_and_runs_once(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[Any] = Counter()
    monkeypatch.setattr(kl_reward_arms, "_tuned", lambda _, name, seeds: done.update((name, one) for one in seeds))
    monkeypatch.setattr(
        kl_reward_arms, "_online", lambda _, proxy, seeds: iter([done.update((proxy, one) for one in seeds)])
    )
    experiment: Any = SimpleNamespace(sizes=SimpleNamespace(seeds=3), rewards={"strong": "a", "weak": "b"})
    for lane in range(lanes):
        kl_reward_arms._lane(experiment, range(2), lane, lanes)
    seeds = {(rule, seed) for rule in kl_reward_arms.RULES for seed in range(3)}
    runs = {(proxy, seed) for proxy in ("strong", "weak") for seed in range(2)}
    assert done == Counter(seeds | runs)


def test_parts_side_by_side_count_once(tmp_path: Path) -> None:
    work = Work(tmp_path, {})
    for name, began_at, seconds in (("c", 200.0, 5.0), ("a", 100.0, 10.0), ("b", 105.0, 10.0), ("within", 101.0, 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "done.json").write_text(json.dumps({"began_at": began_at, "seconds": seconds}))
        work.part(name, lambda _: pytest.fail("done before"))
    assert work.elapsed_s() == 20.0
