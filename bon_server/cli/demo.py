"""`bon demo` and what it offers beside the demo itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from bon_server.cli.options import AsJson
from bon_server.cli.show import print_result
from bon_server.config.options import Positive
from bon_server.system.terminal import Terminal

app = App(name="demo")

Folder = Annotated[Path, Parameter(help="Keep models, logs and training sets of the demo in this folder.")]
FOLDER = Path(".demo")


@app.default
def demo(*, folder: Folder = FOLDER) -> None:
    """Build the demo models, serve them, ask, look into the log, and make a training set."""
    from bon_server.demo.run import run_demo

    run_demo(folder, Terminal())


@app.command(name="evaluate")
def demo_evaluate(
    *,
    folder: Folder = FOLDER,
    split: Annotated[
        Literal["test", "development"],
        Parameter(help="Measure on these problems: test for final figures, development for choosing."),
    ] = "test",
    limit: Annotated[
        Positive | None, Parameter(help="Measure on about so many problems, for a quick look. Default: on all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the demo reward model on problems it never saw, with 95 % intervals; about 15 minutes on two cores."""
    from bon_server.demo.evaluate import evaluate
    from bon_server.demo.policy_model import build_policy
    from bon_server.demo.reward_model import build_reward

    models = folder / "models"
    policy = build_policy(models / "policy")
    reward = build_reward(models / "reward", policy)
    print_result(evaluate(policy, reward, folder / "samples", split=split, limit=limit), as_json)
