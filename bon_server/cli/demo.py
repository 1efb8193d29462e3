"""`bon demo` and what it offers beside the demo itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bon_server.cli.options import AsJson
from bon_server.cli.show import print_result
from bon_server.terminal import Terminal

app = typer.Typer(help="The main job from end to end on this machine, with demo models.", invoke_without_command=True)


@app.callback()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps models, logs and training sets.")] = Path(".demo"),
) -> None:
    """Build the demo models, serve them, ask, look into the log, and make a training set."""
    context.obj = folder
    if context.invoked_subcommand is None:
        from bon_server.demo.run import run_demo

        run_demo(folder, Terminal())


@app.command("evaluate")
def demo_evaluate(
    context: typer.Context,
    split: Annotated[
        Literal["test", "development"], typer.Option(help="test for final figures, development for choosing.")
    ] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="About so many problems, for a quick look.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the demo reward model on problems it never saw, with 95 % intervals; about 15 minutes on two cores."""
    from bon_server.demo.evaluate import evaluate
    from bon_server.demo.policy_model import build_policy
    from bon_server.demo.reward_model import build_reward

    models = context.obj / "models"
    policy = build_policy(models / "policy")
    reward = build_reward(models / "reward", policy)
    print_result(evaluate(policy, reward, context.obj / "samples", split=split, limit=limit), as_json)
