"""The verb that trains: `bon train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bon_server.cli.options import AsJson
from bon_server.cli.show import print_result
from bon_server.terminal import Terminal, print_json, warn

if TYPE_CHECKING:
    from bon_server.offline.training.train import Progress as Done

OPTIMISER, LORA, MEASURED = "How it learns", "What is trained", "Checkpoints and held-out rows"


def train(
    data: Annotated[Path, typer.Option(help="Folder that bon select wrote, or one JSONL or Parquet file.")],
    policy: Annotated[str, typer.Option(help="Directory or hub id of the model to start from.")],
    out: Annotated[Path, typer.Option(help="Directory of the tuned model, which bon serve --policy loads.")],
    method: Annotated[Literal["sft", "dpo"], typer.Option(help="sft: on completions; dpo: on pairs.")] = "sft",
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights, not low-rank updates.", rich_help_panel=LORA)
    ] = False,
    lora_rank: Annotated[int, typer.Option(help="Rank of the updates.", rich_help_panel=LORA)] = 16,
    lora_alpha: Annotated[
        int | None, typer.Option(help="They are scaled by alpha / rank. Default: twice the rank.", rich_help_panel=LORA)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, float32: format of the computation.", rich_help_panel=LORA)
    ] = "auto",
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak. Default: by method and size of model.", rich_help_panel=OPTIMISER)
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Times each row is seen. Default: sft 2, dpo 1.", rich_help_panel=OPTIMISER)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a step, over all devices.", rich_help_panel=OPTIMISER)] = 16,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(help="Rows computed at a time. Default: at most 8, on CPUs 4.", rich_help_panel=OPTIMISER),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Longer rows are left out. Default: the context, at most 4096.", rich_help_panel=OPTIMISER),
    ] = None,
    beta: Annotated[
        float, typer.Option(help="dpo: how strongly it is held to the first policy.", rich_help_panel=OPTIMISER)
    ] = 0.1,
    warmup_share: Annotated[
        float, typer.Option(help="Share of the steps in which the rate rises.", rich_help_panel=OPTIMISER)
    ] = 0.05,
    schedule: Annotated[
        str, typer.Option(help="linear, cosine, constant: the rate after that.", rich_help_panel=OPTIMISER)
    ] = "linear",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=OPTIMISER)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the order of rows and the first updates.")] = 0,
    eval_share: Annotated[
        float, typer.Option(help="Share of the prompts to hold out and measure.", rich_help_panel=MEASURED)
    ] = 0.0,
    eval_data: Annotated[
        Path | None, typer.Option(help="Rows to measure instead: as --data.", rich_help_panel=MEASURED)
    ] = None,
    save_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. Default: ten in all.", rich_help_panel=MEASURED)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            help="Less memory, more time. Default: on GPUs for models from 1e9 parameters.", rich_help_panel=OPTIMISER
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tune a policy on a training set; a run that was killed goes on with the same command."""
    from bon_server.offline.training.options import TrainOptions
    from bon_server.offline.training.train import train as run

    options = TrainOptions(
        data=data,
        policy=policy,
        out=out,
        method=method,
        lora=not full,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_length=max_length,
        seed=seed,
        dtype=dtype,
        beta=beta,
        warmup_share=warmup_share,
        schedule=schedule,
        weight_decay=weight_decay,
        eval_share=eval_share,
        eval_data=eval_data,
        save_steps=save_steps,
        gradient_checkpointing=gradient_checkpointing,
    )
    with _progress() as advance:
        result = run(options, advance, _warn)
    if os.environ.get("RANK", "0") != "0":  # under accelerate's launcher the first process speaks
        return
    if as_json:
        print_json(result)
        return
    print_result(_told(result, out), as_json=False)


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
