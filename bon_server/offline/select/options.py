"""What `bon select` is told: where from, what, how, where to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from msgspec import Meta

from bon_server.config.options import (
    FLAT,
    CallSeed,
    NotNegativeNumber,
    Positive,
    PositiveNumber,
    Share,
    check_values,
    panel,
    read_pairs,
    read_time,
)
from bon_server.core.errors import ConfigError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Kind

if TYPE_CHECKING:
    from bon_server.offline.select.rules import Rule

FormatName = Literal[
    "trl-sft",
    "trl-tokens",
    "trl-dpo",
    "trl-kto",
    "messages",
    "openai",
    "openai-dpo",
    "sharegpt",
    "grouped",
    "parquet",
]
Compression = Literal["none", "gzip", "zstd"]
Engine = Literal["local", "ray"]
PAIR_FORMATS = ("trl-dpo", "trl-kto", "openai-dpo")
"""Those that hold pairs and nothing else; `parquet` holds either."""

RULE = panel("The rule")
FILTER = panel("Which candidates are left out before the rule chooses")
OUTPUT = panel("How the training set is written")


@FILTER
@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is left out before choosing, and what is chosen within. None or empty: no such filter."""

    keep_truncated: bool = False
    """Let the rule choose candidates that were cut at max_tokens too."""
    kinds: Annotated[tuple[Kind, ...], Parameter(name="--kind")] = (Kind.GENERATE, Kind.IMPORT)
    """Read records of this kind only. Scored completions came from somewhere else than the policy. May be repeated."""
    merge: Annotated[bool, Parameter(negative="--no-merge")] = True
    """Count the requests of one prompt as one."""
    reward: Annotated[str | None, RULE] = None
    """Choose by this reward: an added score (bon rescore), or else a part of the logged ones. Default: the reward."""
    reward_model: str | None = None
    """Count only the rewards of this model, ID or ID@REVISION. Default: of all, which must be one model."""
    normalise: bool = False
    """Make rewards of several models comparable: subtract the mean of their model, divide by its standard deviation."""
    since: Annotated[datetime | None, Parameter(converter=read_time)] = None
    """Leave out requests that began before this ISO 8601 time; UTC unless it says otherwise. Default: no limit."""
    until: Annotated[datetime | None, Parameter(converter=read_time)] = None
    """Leave out requests that began at this ISO 8601 time or later; UTC unless it says otherwise. Default: no limit."""
    principals: Annotated[tuple[str, ...], Parameter(name="--principal")] = ()
    """Take the requests of this caller only. May be repeated. Default: of every caller."""
    tags: Annotated[
        tuple[tuple[str, str], ...], Parameter(name="--tag", converter=read_pairs, n_tokens=1, metavar="KEY=VALUE")
    ] = ()
    """Take only requests that have this tag, KEY=VALUE. May be repeated: they have all of them. Default: any tags."""
    policies: Annotated[tuple[str, ...], Parameter(name="--policy")] = ()
    """Take the candidates of this policy only, ID or ID@REVISION. May be repeated. Default: of every policy."""
    min_tokens: int | None = None
    """Leave out completions with fewer tokens, as logged; imported ones have 0. Default: no limit."""
    max_tokens: int | None = None
    """Leave out completions with more tokens, as logged; imported ones have 0. Default: no limit."""
    min_chars: int | None = None
    """Leave out completions with fewer characters (code points). Default: no limit."""
    max_chars: int | None = None
    """Leave out completions with more characters (code points). Default: no limit."""
    predicate: str | None = None
    """Leave out candidates for which module:function returns false, given record and candidate. Default: none."""
    duplicates: Literal["keep", "exact", "normalised"] = "keep"
    """Keep equal texts of a prompt, or leave out all but the first in the log: texts that are exactly equal, or equal
    once normalised."""
    min_n: int | None = None
    """Leave out prompts with fewer candidates left. Default: no limit."""
    min_spread: float | None = None
    """Leave out prompts whose best and worst reward are less far apart. Default: no limit."""

    @property
    def need_whole_prompts(self) -> bool:
        """Whether a filter looks at all candidates of a prompt."""
        return self.duplicates != "keep" or self.min_n is not None or self.min_spread is not None

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        told = asdict(self) | {"kinds": sorted(self.kinds)}
        if self.reward is None:
            del told["reward"]  # manifests of before have no such key
        for name in ("since", "until"):
            told[name] = told[name] and told[name].isoformat()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


@OUTPUT
@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How the training set is written."""

    compression: Compression = "none"
    """Compress JSONL files in this way. Parquet always has zstd inside."""
    shard_rows: Positive = 50_000
    """Begin a new file after so many lines."""
    max_length: Positive | None = None
    """Count the lines with more tokens, prompt and completion together, which a trainer would cut. Default: do not."""
    tokenizer: str | None = None
    """Count with the tokenizer in this folder. Default: count the tokens in the log."""


@dataclass(frozen=True, slots=True)
class SelectOptions:
    """One selection. Which parameters a rule takes, `Rule` says."""

    logs: Annotated[tuple[Path, ...], Parameter(name="--log")]
    """Read the log in this folder. May be repeated: the order of the logs is the first key of the log order."""
    rule: OfflineRule
    """Choose by this rule. Each rule has a control, random-RULE, that chooses as many by chance."""
    out: Path
    """Write the training set and its manifest to this folder: missing, empty, or left by the same command."""
    k: Annotated[Positive | None, RULE, Parameter(alias="-k")] = None
    """Choose so many candidates, of each prompt or, for top-k-overall, in all; soft: draw so many of each prompt.
    Default: 1 for soft; the top-k rules need it."""
    format: Annotated[FormatName | None, OUTPUT] = None
    """Write lines of this format. Default: trl-dpo for pairs, else trl-sft."""
    seed: Annotated[CallSeed, RULE] = 0
    """Draw at random from this seed; rules without a draw ignore it."""
    max_per_prompt: Annotated[Positive | None, RULE] = None
    """For top-k-overall: choose at most so many candidates of one prompt. Default: no limit."""
    threshold: Annotated[float | None, RULE] = None
    """For threshold: choose candidates with at least this reward. Default: --quantile."""
    quantile: Annotated[Share | None, RULE] = None
    """For threshold: choose rewards at or above this quantile (0 to 1) of their prompt's. Default: --threshold."""
    margin: Annotated[NotNegativeNumber | None, RULE] = None
    """For pairs: make pairs whose rewards differ by at least this much. Default: 0, but equal rewards are no pair."""
    against: Annotated[Literal["worst", "random"] | None, RULE] = None
    """For pairs: set the best against the worst candidate or a random lower one. Default: the worst."""
    temperature: Annotated[PositiveNumber | None, RULE] = None
    """For soft: draw in proportion to exp(reward / temperature), in units of reward. Default: 1."""
    weights: Annotated[bool, RULE] = False
    """For soft: choose all candidates and write their weights, instead of drawing."""
    snapshot: str | None = None
    """Choose from what the snapshot of this name pins, in each log. Default: from all records."""
    filters: Annotated[Filters, FLAT] = field(default_factory=Filters)
    written: Annotated[Written, FLAT] = field(default_factory=Written)
    engine: Annotated[Engine, OUTPUT] = "local"
    """Run on this machine, or on a Ray cluster."""
    threads: Annotated[Annotated[int, Meta(ge=1, le=1024)], OUTPUT] = 2
    """Run so many tasks at a time on this machine, or on a cluster that ray starts itself."""

    @property
    def the_format(self) -> str:
        """The format, its default filled in."""
        return self.format or ("trl-dpo" if self.rule.shape is OfflineRule.PAIRS else "trl-sft")

    def the_rule(self) -> Rule:
        """The rule with its defaults. Raises `ConfigError` for parameters that it does not take, or lacks."""
        from bon_server.offline.select.rules import Rule  # needs numpy, which the command line does not

        check_values(self)
        takes = _TAKES[self.rule.shape]
        given = {name: getattr(self, name) for name in _PARAMETERS}
        given = {name: value for name, value in given.items() if value is not None and value is not False}
        for name, value in given.items():
            if name not in takes:
                raise ConfigError(f"{name}: {value} given; the rule {self.rule} takes none")
        if self.rule.needs_k and self.k is None:
            raise ConfigError(f"k: None given; the rule {self.rule} needs a number from 1")
        if self.rule.shape is OfflineRule.THRESHOLD and (self.threshold is None) == (self.quantile is None):
            raise ConfigError(f"threshold: the rule {self.rule} needs either a threshold or a quantile")
        if self.weights and self.k is not None:
            raise ConfigError(f"k: {self.k} given; with weights all are chosen")
        return Rule(self.rule, **given)


_PARAMETERS = ("k", "max_per_prompt", "threshold", "quantile", "margin", "against", "temperature", "weights")
_TAKES: dict[OfflineRule, tuple[str, ...]] = {
    OfflineRule.BEST_PER_PROMPT: (),
    OfflineRule.TOP_K_PER_PROMPT: ("k",),
    OfflineRule.TOP_K_OVERALL: ("k", "max_per_prompt"),
    OfflineRule.THRESHOLD: ("threshold", "quantile"),
    OfflineRule.PAIRS: ("margin", "against"),
    OfflineRule.SOFT: ("k", "temperature", "weights"),
}


def check(options: SelectOptions) -> None:
    """Raises `ConfigError` for options that do not go together."""
    if not options.logs:
        raise ConfigError("log: none given; at least one folder is needed")
    if len({log.resolve() for log in options.logs}) < len(options.logs):
        raise ConfigError(f"log: {', '.join(map(str, options.logs))} given; each folder may be named once")
    rule, filters, written = options.the_rule().name, options.filters, options.written
    fits = options.the_format == "parquet" or (options.the_format in PAIR_FORMATS) == (rule.shape is OfflineRule.PAIRS)
    if not fits:
        raise ConfigError(f"format: {options.the_format!r} given; it does not hold what {rule} chooses")
    if written.tokenizer is not None and written.max_length is None:
        raise ConfigError(f"tokenizer: {written.tokenizer} given; it is only used to count beyond a max_length")
    for name, time in (("since", filters.since), ("until", filters.until)):
        if time is not None and time.tzinfo is None:
            raise ConfigError(f"{name}: {time.isoformat()} given; it needs a time zone")
