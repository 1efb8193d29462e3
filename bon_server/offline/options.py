"""What `bon select` is told: where from, what, how, where to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bon_server.errors import ConfigError
from bon_server.offline.formats import FORMATS, PAIR_FORMATS
from bon_server.offline.rules import AGAINST, Rule
from bon_server.selection import OfflineRule
from bon_server.types import Kind

COMPRESSIONS = ("none", "gzip", "zstd")
DUPLICATES = ("keep", "exact", "normalised")
ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is left out before choosing, and what is chosen within. None or empty: no such filter."""

    keep_truncated: bool = False
    """Whether candidates that ended at `max_tokens` can be chosen."""
    kinds: tuple[str, ...] = (Kind.GENERATE.value, Kind.IMPORT.value)
    """Kinds of records. Scored completions (`score`) came from somewhere else than the policy."""
    merge: bool = True
    """Whether requests of one prompt count as one."""
    reward: str | None = None
    """Choose by this reward: an added score (`bon rescore`), or else a part of the logged ones. None: the reward."""
    reward_model: str | None = None
    """Only rewards of this model count: `ID` or `ID@REVISION`."""
    normalise: bool = False
    """Make rewards of different models comparable: less their mean, over their standard deviation, model by model."""
    since: datetime | None = None
    """Only requests that began then or later; with time zone."""
    until: datetime | None = None
    """Only requests that began before; with time zone."""
    principals: tuple[str, ...] = ()
    """Only requests of one of these callers."""
    tags: tuple[tuple[str, str], ...] = ()
    """Only requests with all of these tags."""
    policies: tuple[str, ...] = ()
    """Only candidates of one of these policies: `ID` or `ID@REVISION`, the revision being the candidate's."""
    min_tokens: int | None = None
    max_tokens: int | None = None
    """Of the completion, as logged; an imported one has 0."""
    min_chars: int | None = None
    max_chars: int | None = None
    """Of the completion, in code points."""
    predicate: str | None = None
    """`module:function`, called with record and candidate; false: left out."""
    duplicates: str = "keep"
    """One of `DUPLICATES`. Of a prompt's equal texts the first in the log stays."""
    min_n: int | None = None
    """Only prompts with so many candidates left."""
    min_spread: float | None = None
    """Only prompts whose highest and lowest reward are so far apart."""

    @property
    def need_whole_prompts(self) -> bool:
        """Whether a filter looks at all candidates of a prompt."""
        return self.duplicates != "keep" or self.min_n is not None or self.min_spread is not None

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        told = asdict(self)
        if self.reward is None:
            del told["reward"]  # manifests of before have no such key
        for name in ("since", "until"):
            told[name] = told[name] and told[name].isoformat()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How the training set is written."""

    compression: str = "none"
    """Of JSONL files, one of `COMPRESSIONS`; Parquet always has zstd inside."""
    shard_rows: int = 50_000
    """Lines of a file, the last one of a form has fewer."""
    max_length: int | None = None
    """Count the lines that are longer than so many tokens, prompt and completion together."""
    tokenizer: str | None = None
    """Folder of the tokenizer to count with. None: count the tokens that are in the log."""


@dataclass(frozen=True, slots=True)
class SelectOptions:
    """One selection. Which parameters a rule takes, `Rule` says."""

    logs: tuple[Path, ...]
    """Log folders; their order is the first key of the log order."""
    rule: OfflineRule
    out: Path
    """Missing, empty, or left by an earlier run of the same selection."""
    k: int | None = None
    format: str | None = None
    """None: `trl-dpo` for pairs, else `trl-sft`."""
    seed: int = 0
    """Of random draws; rules without any ignore it."""
    max_per_prompt: int | None = None
    threshold: float | None = None
    quantile: float | None = None
    margin: float | None = None
    against: str | None = None
    temperature: float | None = None
    weights: bool = False
    snapshot: str | None = None
    """Choose from exactly the segments that the snapshot of this name pins, in each log. None: from all there is."""
    filters: Filters = field(default_factory=Filters)
    written: Written = field(default_factory=Written)
    engine: str = "local"
    threads: int = 2
    """Of the engine `local`, and of a cluster that `ray` starts itself."""

    @property
    def the_format(self) -> str:
        """The format, its default filled in."""
        return self.format or ("trl-dpo" if self.rule.shape is OfflineRule.PAIRS else "trl-sft")

    def the_rule(self) -> Rule:
        """The rule with its defaults. Raises `ConfigError` for parameters that it does not take, or lacks."""
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
        rule = Rule(self.rule, **given)
        for name, allowed, good in (
            ("k", "a number from 1", rule.k is None or rule.k >= 1),
            ("max_per_prompt", "a number from 1", rule.max_per_prompt is None or rule.max_per_prompt >= 1),
            ("threshold", "a finite number", rule.threshold is None or math.isfinite(rule.threshold)),
            ("quantile", "0 to 1", rule.quantile is None or 0 <= rule.quantile <= 1),
            ("margin", "a number from 0", math.isfinite(rule.margin) and rule.margin >= 0),
            ("temperature", "a number above 0", math.isfinite(rule.temperature) and rule.temperature > 0),
            ("against", " or ".join(AGAINST), rule.against in AGAINST),
        ):
            if not good:
                raise ConfigError(f"{name}: {getattr(rule, name)!r} given; the rule {self.rule} needs {allowed}")
        return rule


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
    rule, filters, written = options.the_rule(), options.filters, options.written
    single_formats = set(FORMATS) - {*PAIR_FORMATS, "parquet"}
    if options.the_format in (single_formats if rule.name.shape is OfflineRule.PAIRS else PAIR_FORMATS):
        raise ConfigError(f"format: {options.the_format!r} given; it does not hold what {rule.name} chooses")
    for name, value, allowed in (
        ("format", options.the_format, tuple(FORMATS)),
        ("compression", written.compression, COMPRESSIONS),
        ("duplicates", filters.duplicates, DUPLICATES),
        ("engine", options.engine, ENGINES),
    ):
        if value not in allowed:
            raise ConfigError(f"{name}: {value!r} given; allowed are {', '.join(allowed)}")
    for kind in filters.kinds:
        if kind not in tuple(Kind):
            raise ConfigError(f"kind: {kind!r} given; allowed are {', '.join(Kind)}")
    for name, number in (
        ("shard_rows", written.shard_rows),
        ("threads", options.threads),
        ("max_length", written.max_length),
    ):
        if number is not None and number < 1:
            raise ConfigError(f"{name}: {number} given; allowed are numbers from 1")
    if written.tokenizer is not None and written.max_length is None:
        raise ConfigError(f"tokenizer: {written.tokenizer} given; it is only used to count beyond a max_length")
    if filters.min_spread is not None and not math.isfinite(filters.min_spread):
        raise ConfigError(f"min_spread: {filters.min_spread} given; allowed are finite numbers")
    for name, time in (("since", filters.since), ("until", filters.until)):
        if time is not None and time.tzinfo is None:
            raise ConfigError(f"{name}: {time.isoformat()} given; it needs a time zone")
