"""What `bon rounds` is told."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from cyclopts import Parameter, Token
from cyclopts.validators import Path as PathCheck
from msgspec import Meta

from bon_server.config.options import (
    FLAT,
    NotNegative,
    NotNegativeNumber,
    Positive,
    PositiveNumber,
    RequestsInFlight,
    Seed,
    Share,
    check_values,
    panel,
    read_pairs,
)
from bon_server.core.errors import ConfigError
from bon_server.core.selection import OfflineRule
from bon_server.loop.harvest.prompts import Columns, find_prompts, parse_columns
from bon_server.offline.select.options import Filters, SelectOptions
from bon_server.offline.select.options import check as check_selection
from bon_server.offline.train.options import Method, TrainOptions
from bon_server.offline.train.options import check as check_training
from bon_server.system.files import sha256_of

_OF_THIS_RUN = ("out", "rounds", "concurrency", "patience_s")
"""What may differ when a run goes on: none of it changes what a round is."""
_OURS_IN_TRAINING = ("data", "policy", "out", "method", "seed")

ASKING = panel("Asking")
SELECTION = panel("Selecting")
TRAINING = panel("Training")
ENDING = panel("Evaluating, and when to stop")
_EXISTS = Parameter(validator=PathCheck(exists=True))


def read_columns(_: Any, tokens: Sequence[Token]) -> Columns:
    """Words of a flag that takes PART=COLUMN."""
    return parse_columns([token.value for token in tokens])


def read_training(kind: Any, tokens: Sequence[Token]) -> dict[str, str]:
    """Words of a flag that takes NAME=VALUE."""
    return dict(read_pairs(kind, tokens))


@ASKING
@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How prompts are asked, those of training and the held-out ones alike. None: the server's default."""

    n: Annotated[Annotated[int, Meta(ge=2)] | None, Parameter(name="-n")] = None
    """Sample so many candidates of a training prompt, at least 2. Default: the server's."""
    temperature: PositiveNumber | None = None
    """Sample at this softmax temperature. Default: the server's."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability. Default: the server's."""
    max_tokens: int | None = None
    """Cut completions after so many tokens. Default: the server's."""
    system: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Put this system message before every prompt. Default: none."""
    raw: bool = False
    """Continue string prompts as texts, instead of sending them as a user message of a chat."""
    columns: Annotated[
        Columns,
        Parameter(
            name="--column",
            converter=read_columns,
            n_tokens=-1,
            accepts_keys=False,
            metavar="PART=COLUMN",
            show_default=False,
        ),
    ] = field(default_factory=Columns)
    """Read a part of the request from this column of both files, as in bon harvest. May be repeated. Default: each part
    from the column of its name."""


@ENDING
@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """When to go no further; see `run.py`."""

    patience: Positive = 2
    """Stop after so many rounds in a row without a new best held-out reward."""
    min_distinct: Share = 0.5
    """Stop when distinct-1, -2 or -3 is below this share of the first policy's; 0 turns the check off."""
    min_entropy: NotNegativeNumber = 0.2
    """Stop when the entropy is below this share of the first policy's; 0 turns the check off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsOptions:
    """One run of rounds."""

    policy: str
    """Start from this policy: a directory or a hub id."""
    rewards: Annotated[tuple[str, ...], Parameter(name="--reward")]
    """Score with this reward model, as for bon serve. May be repeated: several score together."""
    prompts: Annotated[Path, _EXISTS]
    """Train on the prompts of this file or folder, in the forms that bon harvest takes."""
    held_out: Annotated[Path, _EXISTS]
    """Evaluate on the prompts of this file or folder, which are never trained on."""
    out: Path
    """Keep the run in this folder; the same command goes on from what is there."""
    rounds: Positive = 3
    """Do so many rounds in all; the number can be raised later."""
    asking: Annotated[Asking, FLAT] = field(default_factory=Asking)
    concurrency: Annotated[RequestsInFlight, ASKING] = 8
    """Keep so many requests in flight."""
    patience_s: Annotated[float, ASKING, Parameter(name="--server-patience")] = 300.0
    """Wait so many seconds for a server that gives no answer."""
    config: Annotated[Path | None, ASKING, _EXISTS] = None
    """Read the settings of the server from this TOML file. Default: none."""
    settings: Annotated[tuple[str, ...], ASKING, Parameter(name="--set", metavar="SECTION.KEY=VALUE")] = ()
    """Change one setting of the server, section.key=value. May be repeated. Default: none."""
    rule: Annotated[OfflineRule | None, SELECTION] = None
    """Select by this rule of bon select. Default: best-per-prompt for sft, pairs for dpo."""
    k: Annotated[Positive | None, SELECTION, Parameter(alias="-k")] = None
    """For top-k rules: select so many candidates, as in bon select. Default: none; these rules need it."""
    threshold: Annotated[float | None, SELECTION] = None
    """For threshold: select candidates with at least this reward. Default: --quantile."""
    quantile: Annotated[Share | None, SELECTION] = None
    """For threshold: select rewards at or above this quantile (0 to 1) of their prompt's. Default: --threshold."""
    margin: Annotated[NotNegativeNumber | None, SELECTION] = None
    """For pairs: make pairs whose rewards differ by at least this much. Default: 0."""
    min_spread: Annotated[float | None, SELECTION] = None
    """Leave out prompts whose best and worst reward are less far apart. Default: no limit."""
    merge_rounds: Annotated[bool, SELECTION, Parameter(negative="--no-merge-rounds")] = True
    """Select from the logs of all rounds so far, so that the best over all of them is kept, not from the last alone."""
    method: Annotated[Method, TRAINING] = "sft"
    """Train by this method: sft on completions, dpo on pairs."""
    start_from: Annotated[Literal["base", "last"], TRAINING, Parameter(name="--from")] = "base"
    """Train the first policy anew in every round (base), or the last one further."""
    training: Annotated[
        dict[str, Any],
        TRAINING,
        Parameter(name="--train", converter=read_training, n_tokens=-1, accepts_keys=False, metavar="NAME=VALUE"),
    ] = field(default_factory=dict)
    """Set an option of bon train, such as learning_rate=1e-5 or lora=false. May be repeated. Default: none."""
    seed: Annotated[Seed | None, TRAINING] = None
    """Sample, select and train from this seed. Default: sampling is random, the others take 0."""
    held_out_n: Annotated[Positive, ENDING] = 4
    """Sample so many completions of a held-out prompt, beside a greedy one."""
    gold: Annotated[str | None, ENDING] = None
    """Let function:module:name judge held-out texts; its verdict is reported, never trained on. Default: none."""
    stops: Annotated[Stops, FLAT] = field(default_factory=Stops)
    kl_texts: Annotated[NotNegative, ENDING] = 200
    """Measure the KL on so many held-out texts, one of each prompt; 0: do not measure it."""

    @property
    def the_rule(self) -> OfflineRule:
        """The rule, its default filled in."""
        return self.rule or (OfflineRule.PAIRS if self.method == "dpo" else OfflineRule.BEST_PER_PROMPT)

    def selection(self, logs: tuple[Path, ...], out: Path) -> SelectOptions:
        """How the training set of a round is chosen: the held-out samples in the same logs never are."""
        return SelectOptions(
            logs=logs,
            rule=self.the_rule,
            out=out,
            k=self.k,
            format="trl-dpo" if self.method == "dpo" else "trl-tokens",
            seed=self.seed or 0,
            threshold=self.threshold,
            quantile=self.quantile,
            margin=self.margin,
            filters=Filters(tags=(("split", "train"),), min_spread=self.min_spread),
        )

    def train_options(self, data: Path, policy: str, out: Path) -> TrainOptions:
        """How a policy is trained on it. Raises `ConfigError`."""
        types, given = get_type_hints(TrainOptions), {}
        for name, value in self.training.items():
            if name not in types:
                raise ConfigError(f"train: {name} given; bon train has no such option")
            try:
                given[name] = msgspec.convert(value, types[name], strict=False, dec_hook=lambda of, text: of(text))
            except msgspec.ValidationError as error:
                raise ConfigError(f"train: {name}={value!r} given; {error}") from None
        return TrainOptions(data=data, policy=policy, out=out, method=self.method, seed=self.seed or 0, **given)

    def identity(self) -> dict[str, Any]:
        """What makes a run the same run, ready for JSON; of prompts, what is in their files."""
        told = asdict(self)
        for name in _OF_THIS_RUN:
            told.pop(name)
        told |= {"prompts": _digest(self.prompts), "held_out": _digest(self.held_out), "rule": self.the_rule.value}
        if self.config is not None:
            told["config"] = sha256_of(self.config)
        if Path(self.policy).is_dir():
            told["policy"] = str(Path(self.policy).resolve())
        identity: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(told))
        return identity


def check(options: RoundsOptions) -> None:
    """Raises `ConfigError` for options that are not allowed or do not go together."""
    check_values(options)
    asking = options.asking
    for name, value, allowed, good in (
        ("reward", options.rewards, "at least one", bool(options.rewards)),
        ("system", asking.system, "nothing with --raw", not (asking.raw and asking.system is not None)),
        ("gold", options.gold, "function:module:name", options.gold is None or options.gold.startswith("function:")),
        ("policy", options.policy, "what can be trained", options.policy.partition(":")[0] != "synthetic"),
    ):
        if not good:
            raise ConfigError(f"{name}: {value!r} given; allowed are {allowed}")
    for name in _OURS_IN_TRAINING:
        if name in options.training:
            raise ConfigError(f"train: {name} given; bon rounds sets it itself")
    check_training(options.train_options(options.out, options.policy, options.out))
    check_selection(options.selection((options.out,), options.out))


def _digest(prompts: Path) -> str:
    """SHA-256 over the files, in their order."""
    together = hashlib.sha256()
    for file in find_prompts(prompts).files:
        together.update(bytes.fromhex(sha256_of(file)))
    return together.hexdigest()
