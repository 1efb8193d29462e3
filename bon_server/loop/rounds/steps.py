"""The steps of a round. Each leaves its result in the round's folder, and is skipped when it is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bon.requests import GenerateOptions

from bon_server.core.errors import LogLocked, RoundFailed
from bon_server.loop.harvest.lines import Run
from bon_server.loop.harvest.loop import Harvest
from bon_server.loop.harvest.progress import run_harvest
from bon_server.loop.rounds import evaluation
from bon_server.loop.rounds.evaluation import GREEDY, HELD_OUT, SAMPLED, TRAIN, HeldOut, read_held_out, tags
from bon_server.loop.rounds.folder import EVALUATION_NAME, HARVEST_NAME, HELD_OUT_NAME, TRAINING_NAME, Round
from bon_server.loop.rounds.kl import kl_of_texts
from bon_server.loop.rounds.options import RoundsOptions
from bon_server.loop.server_process import serving
from bon_server.offline.select.manifest import MANIFEST_NAME
from bon_server.offline.select.output_folder import WORK_NAME
from bon_server.offline.select.select import select
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.train import Progress, train
from bon_server.system.child_process import in_child
from bon_server.system.lock import WriterLock

Status = Callable[[str], None]
"""Told what is being done, in a few words."""
REPLAY_WINDOW_S = 10 * 365 * 86400
"""For as long as a log is gone on with, what is in it answers."""
_LOCK_WAIT_S = 15.0
_SEEDS_OF_A_ROUND = 1_000_003
"""Rounds draw with seeds of their own: the same seed and nearly the same policy would give nearly the same samples."""


def harvest_step(options: RoundsOptions, this: Round, policy: str, status: Status) -> dict[str, Any]:
    """Samples of the training prompts by the policy so far."""
    there = this.read(HARVEST_NAME)
    if there is None:
        with _served(options, this, policy, status) as address:
            status(f"round {this.number}: harvesting the prompts to train on")
            run = _run(options, this.number, tags(this.number, TRAIN), n=options.asking.n)
            there = {"policy": policy, "train": _harvest(options, options.prompts, run, address)}
        this.write(HARVEST_NAME, there)
    return there


def select_step(options: RoundsOptions, this: Round, earlier: list[Round], status: Status) -> dict[str, Any]:
    """The training set; returns its counts."""
    if this.manifest.exists() and not (this.selected / WORK_NAME).exists():
        there = this.read(f"selected/{MANIFEST_NAME}")
        assert there is not None
        return dict(there["counts"])
    status(f"round {this.number}: selecting")
    logs = tuple(one.log for one in (*earlier, this)) if options.merge_rounds else (this.log,)
    counts = select(options.selection(logs, this.selected))["counts"]
    if not counts["selected"]:
        raise RoundFailed(
            f"round {this.number}: nothing was selected to train on; left out before: {counts['dropped']}"
        )
    return dict(counts)


def train_step(options: RoundsOptions, this: Round, policy: str, status: Status) -> dict[str, Any]:
    """The round's policy; returns `training.json`."""
    there = this.read(f"policy/{TRAINING_NAME}")
    if there is None:
        status(f"round {this.number}: training")

        def tell(progress: Progress) -> None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
            status(f"round {this.number}: training, step {progress.step} of {progress.steps}{loss}")

        # Its warnings are in `training.json`.
        there = in_child(train_on_one_gpu, options.train_options(this.selected, policy, this.policy), tell=tell)
    return there


def train_on_one_gpu(options: TrainOptions, tell: Callable[[Progress], None]) -> dict[str, Any]:
    """In a process of its own, which it shows the first GPU only: `train` refuses several without a launcher."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.split(",")[0]
    return train(options, tell)


def evaluate_step(
    options: RoundsOptions, this: Round, policy: str, against: list[Round], status: Status
) -> dict[str, Any]:
    """Figures of a policy on the held-out prompts.

    against: the first round and the best one so far; empty for the first itself.
    """
    there = this.read(EVALUATION_NAME)
    if there is not None:
        return there
    if this.read(HELD_OUT_NAME) is None:
        with _served(options, this, policy, status) as address:
            this.write(HELD_OUT_NAME, _ask_held_out(options, this, address, status))
    status(f"round {this.number}: evaluating")
    seed = options.seed or 0
    held_out = read_held_out(this.log, this.number, options.gold)
    there = {"round": this.number, "policy": policy, "held_out": evaluation.alone(held_out, seed)}
    if there["held_out"][SAMPLED].get("reward") is None:
        raise RoundFailed(f"round {this.number}: no held-out sample has a reward; see {this.folder / 'server.log'}")
    if against:
        first, best = (read_held_out(one.log, one.number, options.gold) for one in against)
        there["against_first"] = evaluation.paired(held_out, first, seed)
        there["against_best"] = {"round": against[1].number, **evaluation.paired(held_out, best, seed)}
        there["kl_nats"] = evaluation.kl_figure(_kl(options, held_out, policy, this.number, status), seed)
    this.write(EVALUATION_NAME, there)
    return there


def _ask_held_out(options: RoundsOptions, this: Round, address: str, status: Status) -> dict[str, Any]:
    told = {}
    for mode, n in ((GREEDY, 1), (SAMPLED, options.held_out_n)):
        status(f"round {this.number}: held-out prompts, {mode}")
        run = _run(options, this.number, tags(this.number, HELD_OUT, mode), n=n)
        if mode == GREEDY:
            run = replace(run, options=run.options | GenerateOptions(temperature=0.0))
        told[mode] = _harvest(options, options.held_out, run, address)
    return told


def _kl(options: RoundsOptions, held_out: HeldOut, policy: str, number: int, status: Status) -> list[float]:
    texts = [held_out.texts[prompt] for prompt in sorted(held_out.texts)[: options.kl_texts]]
    if not texts:
        return []

    def tell(done: int) -> None:
        status(f"round {number}: KL to the first policy, text {done} of {len(texts)}")

    return in_child(kl_of_texts, policy, options.policy, texts, tell=tell)


def _run(options: RoundsOptions, number: int, labels: dict[str, str], n: int | None) -> Run:
    asking = options.asking
    seed = None if options.seed is None else options.seed + number * _SEEDS_OF_A_ROUND
    asked = GenerateOptions(
        n=n, temperature=asking.temperature, top_p=asking.top_p, max_tokens=asking.max_tokens, seed=seed, tags=labels
    )
    return Run(asked, asking.raw, asking.system, asking.columns)


def _harvest(options: RoundsOptions, prompts: Path, run: Run, address: str) -> dict[str, Any]:
    """Raises RoundFailed when it did not come to its end, or nothing was answered."""
    result: Harvest = run_harvest(
        prompts, run, target=address, concurrency=options.concurrency, patience_s=options.patience_s
    )
    if result.stopped is not None:
        raise RoundFailed(
            f"the harvest of {prompts} was stopped: {result.stopped}; the same command goes on from there"
        )
    if result.failed == result.requests:
        raise RoundFailed(f"the harvest of {prompts}: none of {result.requests} prompts was answered")
    told = asdict(result)
    return {name: told[name] for name in ("requests", "candidates", "failed", "seconds")}


@contextmanager
def _served(options: RoundsOptions, this: Round, policy: str, status: Status) -> Iterator[str]:
    """A server of a policy that writes the round's log."""
    status(f"round {this.number}: starting a server of {policy}")
    _await_lock(this.log)
    words = ["--policy", policy, "--log", str(this.log)]
    for reward in options.rewards:
        words += ["--reward", reward]
    if options.config is not None:
        words += ["--config", str(options.config)]
    for setting in (f"log.replay_window_s={REPLAY_WINDOW_S}", *options.settings):
        words += ["--set", setting]
    with serving(words, this.folder) as address:
        yield address


def _await_lock(log: Path) -> None:
    """The server of a run that was killed just now may need a moment to be gone. Raises LogLocked."""
    give_up_s = time.monotonic() + _LOCK_WAIT_S
    while log.exists():
        try:
            WriterLock(log).release()
            return
        except LogLocked:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(0.1)
