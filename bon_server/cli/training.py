"""The verb that trains: `bon train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bon_server.cli.options import AsJson
from bon_server.cli.show import print_result
from bon_server.config.options import FLAT
from bon_server.offline.train.options import TrainOptions
from bon_server.system.terminal import Terminal, print_json, warn

if TYPE_CHECKING:
    from bon_server.offline.train.train import Progress as Done


def train(*, options: Annotated[TrainOptions, FLAT], as_json: AsJson = False) -> None:
    """Tune a policy on a training set; a run that was killed goes on with the same command."""
    from bon_server.offline.train.train import train as run

    with _progress() as advance:
        result = run(options, advance, _warn)
    if os.environ.get("RANK", "0") != "0":  # under accelerate's launcher the first process speaks
        return
    if as_json:
        print_json(result)
        return
    print_result(_told(result, options.out), as_json=False)


def _told(result: dict[str, Any], out: Path) -> dict[str, Any]:
    metrics = result["metrics"]
    rows = result["data"]["rows"]
    told = {"model": f"{out}, already finished" if result.get("already_finished") else str(out)}
    told |= {"revision": result["revision"], "rows": f"{rows['trained']} of {rows['read']}"}
    told |= {"steps": metrics["steps"], "loss": f"{metrics['first_loss']} to {metrics['last_loss']}"}
    if metrics["last_eval_loss"] is not None:
        told["held-out loss"] = f"{metrics['first_eval_loss']} to {metrics['last_eval_loss']}"
    return told | {"seconds": metrics["seconds"]}


def _warn(warning: str) -> None:
    warn(warning)


@contextmanager
def _progress() -> Iterator[Callable[[Done], None]]:
    """A bar with the loss where stderr is a terminal, else ten lines."""
    console = Terminal(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def advance(done: Done) -> None:
            loss = "" if done.loss is None else f"loss {done.loss:.4f}"
            bar.update(task, completed=done.step, total=done.steps, description=loss)
            line = done.step * 10 // done.steps > (done.step - 1) * 10 // done.steps
            if not console.is_terminal and loss and (line or done.step == 1):
                warn(f"step {done.step} of {done.steps}, {loss}")

        yield advance
