"""A harvest as a command runs it: its own connection, a progress bar on stderr, answers to a file."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import bon
from bon.v1 import bon_pb2 as pb
from bon.visible import visible
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bon_server.loop.harvest.lines import Run
from bon_server.loop.harvest.loop import Harvest, Watcher, harvest
from bon_server.loop.harvest.prompts import PromptLine, find_prompts
from bon_server.system.terminal import Terminal


def run_harvest(
    file: Path,
    run: Run,
    *,
    target: str,
    security: bon.Security | None = None,
    concurrency: int = 8,
    patience_s: float = 300.0,
    timeout_s: float | None = None,
    out: Path | None = None,
) -> Harvest:
    """Harvests `file`, showing progress and failed lines on stderr. Raises OSError for a file that cannot be used.

    out: gets one JSON line `{"line", "request_id", "text", "reward", "replayed"}` for each answer, as it comes; running
    again writes it anew, replayed answers included.
    """
    prompts = find_prompts(file)
    with ExitStack() as cleanup:
        answers = cleanup.enter_context(out.open("w", encoding="utf-8")) if out else None
        shown = cleanup.enter_context(_Shown(prompts.size_bytes, answers))
        watcher = Watcher(shown.answer, shown.failure, shown.wait)

        async def session() -> Harvest:
            async with bon.AsyncClient(target, attempts=1, **(security or {})) as client:
                return await harvest(
                    prompts.lines(run.columns),
                    client,
                    run,
                    concurrency=concurrency,
                    patience_s=patience_s,
                    timeout_s=timeout_s,
                    watcher=watcher,
                )

        return asyncio.run(session())


class _Shown:
    """The progress bar; it advances by bytes of the files, whose number of lines nobody knows."""

    def __init__(self, size_bytes: int, answers: IO[str] | None) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[done]} answered, {task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Terminal(stderr=True),
        )
        self._task = self._progress.add_task("", total=size_bytes, state="harvesting", done=0, failed=0)
        self._answers = answers
        self._done = self._failed = 0

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def answer(self, line: PromptLine, answer: pb.GenerateResponse) -> None:
        """One line has its answer; it is out of this process before the next one is asked for."""
        if self._answers:
            self._answers.write(json.dumps(_answer_fields(line, answer)) + "\n")
            self._answers.flush()
        self._done += 1
        self._advance(line)

    def failure(self, line: PromptLine, reason: str) -> None:
        """One line has failed for good."""
        self._progress.console.print(f"line {line.number}: {reason}", soft_wrap=True)
        self._failed += 1
        self._advance(line)

    def wait(self, reason: str) -> None:
        """The server is full or away."""
        self._progress.update(self._task, state=visible(f"waiting ({reason.partition(':')[0]})"))

    def _advance(self, line: PromptLine) -> None:
        self._progress.update(
            self._task, advance=line.size_bytes, state="harvesting", done=self._done, failed=self._failed
        )


def _answer_fields(line: PromptLine, answer: pb.GenerateResponse) -> dict[str, object]:
    return {
        "line": line.number,
        "request_id": answer.request_id,
        "text": answer.best.text,
        "reward": answer.best.reward,
        "replayed": answer.replayed,
    }
