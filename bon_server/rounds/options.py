"""What `bon rounds` is told."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from bon_server.errors import ConfigError
from bon_server.harvest.columns import Columns
from bon_server.harvest.prompts import find_prompts
from bon_server.log.whole_file import sha256_of
from bon_server.offline.options import Filters, SelectOptions
from bon_server.offline.options import check as check_selection
from bon_server.offline.training.options import Method, TrainOptions
from bon_server.offline.training.options import check as check_training
from bon_server.selection import OfflineRule

StartFrom = Literal["base", "last"]
_OF_THIS_RUN = ("out", "rounds", "concurrency", "patience_s")
"""What may differ when a run goes on: none of it changes what a round is."""
_OURS_IN_TRAINING = ("data", "policy", "out", "method", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How prompts are asked, those of training and the held-out ones alike. None: the server's default."""

    n: int | None = None
    """Candidates of a training prompt."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    system: str | None = None
    """System message put before every prompt."""
    raw: bool = False
    """String prompts are texts to be continued."""
    columns: Columns = field(default_factory=Columns)
    """Of both files of prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """When to go no further; see `stopping.py`."""

    patience: int = 2
    """Rounds in a row without a new best held-out reward."""
    min_distinct: float = 0.5
    """Least share of the first policy's distinct-1, -2 and -3; 0: not looked at."""
    min_entropy: float = 0.2
    """Least share of the first policy's entropy; 0: not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsOptions:
    """One run of rounds."""

    policy: str
    """Directory or hub id of the first policy."""
    rewards: tuple[str, ...]
    """As for `bon serve --reward`."""
    prompts: Path
    """To train on; see `harvest.prompts`."""
    held_out: Path
    """To evaluate on; never trained on."""
    out: Path
    rounds: int = 3
    """How many in all; a run that is finished can be gone on with by asking for more."""
    asking: Asking = field(default_factory=Asking)
    held_out_n: int = 4
    """Samples of a held-out prompt, beside the greedy one."""
    method: Method = "sft"
    rule: OfflineRule | None = None
    """How to select. None: best-per-prompt for sft, pairs for dpo."""
    k: int | None = None
    threshold: float | None = None
    quantile: float | None = None
    margin: float | None = None
    min_spread: float | None = None
    merge_rounds: bool = True
    """Whether to select from the logs of all rounds so far, so that the best over all of them is kept; else from the
    last one alone."""
    start_from: StartFrom = "base"
    """Train the first policy anew in every round, or the last one further."""
    training: dict[str, Any] = field(default_factory=dict)
    """Other options of `TrainOptions`, by name."""
    gold: str | None = None
    """`function:module:name`, a verdict on completions that is reported and never trained on."""
    stops: Stops = field(default_factory=Stops)
    kl_texts: int = 200
    """Sampled held-out texts, one of a prompt, to measure the KL on; 0: it is not measured."""
    seed: int | None = None
    """Of sampling, selection and training. None: sampling is random, and the others 0."""
    concurrency: int = 8
    """Requests in flight."""
    patience_s: float = 300.0
    """How long to wait for a server that gives no answer."""
    config: Path | None = None
    """TOML file for the server."""
    settings: tuple[str, ...] = ()
    """Other settings of the server, `section.key=value`."""

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
    stops, asking = options.stops, options.asking
    for name, value, allowed, good in (
        ("reward", options.rewards, "at least one", bool(options.rewards)),
        ("rounds", options.rounds, "numbers from 1", options.rounds >= 1),
        ("from", options.start_from, " or ".join(get_args(StartFrom)), options.start_from in get_args(StartFrom)),
        ("n", asking.n, "numbers from 2, or there is nothing to choose", asking.n is None or asking.n >= 2),
        ("temperature", asking.temperature, "numbers above 0", asking.temperature is None or asking.temperature > 0),
        ("system", asking.system, "nothing with --raw", not (asking.raw and asking.system is not None)),
        ("held_out_n", options.held_out_n, "numbers from 1", options.held_out_n >= 1),
        ("kl_texts", options.kl_texts, "numbers from 0", options.kl_texts >= 0),
        ("patience", stops.patience, "numbers from 1", stops.patience >= 1),
        ("min_distinct", stops.min_distinct, "0 to 1", 0 <= stops.min_distinct <= 1),
        ("min_entropy", stops.min_entropy, "finite numbers from 0", 0 <= stops.min_entropy < math.inf),
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
