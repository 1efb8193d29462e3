"""Which models on which questions, judged by what: the demo's own, or those named on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.models import demo_models
from bon_server.config.specs import import_module
from bon_server.core.errors import ConfigError
from bon_server.models.weights import find_model
from bon_server.system.files import sha256_of

DEMO_GOLD = "benchmarks.arms.demo_questions:gold"
STRONG, WEAK = "strong", "weak"


class Gold(Protocol):
    """What an answer is worth, exactly; for a task with right and wrong answers 1 and 0."""

    def __call__(self, *, prompt: str, completion: str, context: Mapping[str, str]) -> float:
        """As a reward function of `bon serve`; context: the line's `reward_context`."""


@dataclass(frozen=True)
class Setting:
    """What the policies are made from, and measured on."""

    policy: str
    """The base policy: directory or hub id."""
    reward: str
    """The proxy: a reward model's directory or hub id."""
    gold: str
    """`module:function`, see `Gold`."""
    temperature: float = 0.8
    """Of every sampling: harvest, online training, measuring and KL. No top-p, no top-k."""
    max_tokens: int = 48
    """Longest answer."""
    serve: tuple[str, ...] = ()
    """More arguments of `bon serve`."""

    def about(self) -> dict[str, Any]:
        """For the document: models by name and revision."""
        models = {"policy": told(self.policy), "reward": told(self.reward)}
        return {**asdict(self), "serve": list(self.serve), **models}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name models and questions; without any, the demo's."""
    group = parser.add_argument_group("models and questions (default: the demo's)")
    group.add_argument("--models", type=Path, default=Path(".demo/models"), help="where the demo's models are kept")
    group.add_argument("--policy", help="directory or hub id")
    group.add_argument("--reward", help="directory or hub id of a sequence classifier with one label")
    group.add_argument("--train-prompts", type=Path, help='JSON lines {"prompt", "reward_context"?}')
    group.add_argument("--held-out-prompts", type=Path, help="the same, to measure on")
    group.add_argument("--gold", default=DEMO_GOLD, help="module:function(*, prompt, completion, context) -> float")
    group.add_argument("--temperature", type=float, default=0.8)
    group.add_argument("--max-tokens", type=int, default=48)
    group.add_argument("--serve", action="append", default=[], metavar="KEY=VALUE", help="--set of bon serve; repeat")


def setting_of(options: argparse.Namespace) -> Setting:
    """Builds the demo's models where none are named.

    Raises ConfigError for half of what belongs together, and for another sampling than at the temperature alone.
    """
    own = (options.policy, options.reward, options.train_prompts, options.held_out_prompts)
    if any(own) and not all(own):
        raise ConfigError("--policy, --reward, --train-prompts and --held-out-prompts go together: give all or none")
    for assignment in options.serve:
        if assignment.startswith("defaults."):
            raise ConfigError(f"serve: {assignment!r} given; KL is that of sampling at --temperature alone")
    policy, reward = (options.policy, options.reward) if options.policy else demo_models(options.models)
    gold(options.gold)
    return Setting(
        policy,
        reward,
        options.gold,
        options.temperature,
        options.max_tokens,
        tuple(part for assignment in options.serve for part in ("--set", assignment)),
    )


def gold(spec: str) -> Gold:
    """The function that `--gold` names. Raises ConfigError and StartupError."""
    module, _, name = spec.partition(":")
    function = getattr(import_module(f"gold {spec!r}", module), name, None)
    if not callable(function):
        raise ConfigError(f"gold: {spec!r} given; expected module:function")
    chosen: Gold = function
    return chosen


def take_lines(file: Path, count: int, out: Path) -> str:
    """Writes the first `count` lines to `out`, each with its number as a tag; returns the digest of what was written.

    Raises ConfigError: the file has fewer lines.
    """
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < count:
        raise ConfigError(f"{file}: {count} prompts are needed, it has {len(lines)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{**line, "tags": {"question": str(index)}} for index, line in enumerate(lines[:count])]
    out.write_text("".join(json.dumps(line) + "\n" for line in numbered), encoding="utf-8")
    return sha256_of(out)


def told(model: str) -> dict[str, str]:
    """A model by name and revision."""
    files = find_model(model)
    return {"name": files.id, "revision": files.revision}
