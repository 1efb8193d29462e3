"""Who runs the tasks of a stage: threads of this process, or a cluster through Ray Data. Both run the same functions.

A task writes its files and then its summary, `STAGE-00000.json`, each of which appears whole. A task with a summary is
done: a selection that was killed goes on with the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bon_server.core.errors import BonError, ConfigError, LogError
from bon_server.system.files import whole_file

Context = TypeVar("Context")
Task = Callable[[Context, int], dict[str, Any]]
"""A function of what is the same for all tasks of a stage, and of the task's number; returns its summary."""


@dataclass(frozen=True, slots=True)
class Executor:
    """Runs tasks. Summaries are in `work`, which all workers see."""

    engine: str
    """`local` or `ray`."""
    threads: int
    work: Path

    def run(self, stage: str, task: Task[Context], context: Context, count: int) -> Iterator[dict[str, Any]]:
        """The summaries of the tasks 0 to count − 1, in their order. Raises what a task raises, as `BonError`."""
        paths = [self.work / f"{stage}-{number:05d}.json" for number in range(count)]
        pending = [number for number in range(count) if not paths[number].exists()]

        def run_one(number: int) -> None:
            with whole_file(paths[number]) as file:
                file.write(json.dumps(task(context, number)).encode())

        done = set(range(count)) - set(pending)
        following = 0
        finished = (
            _in_threads(run_one, pending, self.threads) if self.engine == "local" else self._on_ray(run_one, pending)
        )
        while following < count:
            while following not in done:
                done.add(next(finished))
            yield json.loads(paths[following].read_bytes())
            following += 1

    def _on_ray(self, run_one: Callable[[int], None], numbers: list[int]) -> Iterator[int]:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("engine: 'ray' given; it needs Ray: install bon-server with its extra [ray]") from error
        if not numbers:
            return
        if not ray.is_initialized():
            ray.init(num_cpus=self.threads, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False

        def run_row(row: dict[str, Any]) -> dict[str, Any]:
            try:
                run_one(int(row["number"]))
            except BonError as error:  # Ray would wrap it in a type of its own
                return {"number": row["number"], "error": str(error)}
            return {"number": row["number"], "error": ""}

        rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        for row in rows.map(run_row).iter_rows():
            if row["error"]:
                raise LogError(row["error"])
            yield int(row["number"])


def _in_threads(run_one: Callable[[int], None], numbers: list[int], threads: int) -> Iterator[int]:
    """Arrow and numpy let the other threads run while they work."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="select") as pool:
        futures = [pool.submit(run_one, number) for number in numbers]
        try:
            for number, future in zip(numbers, futures, strict=True):
                future.result()
                yield number
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
