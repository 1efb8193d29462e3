"""What a request may say: every field is checked, and every violation is reported at once, before any work.

Of a constraint only form and size are checked here, whichever policy follows it. What it costs, the policy finds out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bon.v1 import bon_pb2 as pb

from bon_server.config.settings import DefaultsConfig, LimitsConfig
from bon_server.core.errors import FieldViolation, InvalidRequest

Problem = tuple[str, str]
"""Field and problem."""


REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ROLES = ("system", "user", "assistant")
MAX_STOPS, MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS = 16, 256, 64
MAX_TAGS, MAX_TAG_KEY_CHARS, MAX_TAG_VALUE_CHARS = 16, 64, 256
MAX_REWARD_CONTEXT, MAX_REWARD_CONTEXT_CHARS = 16, 64 << 10
MAX_SEED = 2**63 - 1
MAX_MESSAGES = 4096
MAX_VIOLATIONS = 8
SHOWN_CHARS = 24


@dataclass(frozen=True)
class Interval:
    """Finite numbers from `low` to `high`, `low` itself excluded when `above` is set."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low} to {self.high}"


SAMPLING_RANGES = {
    "temperature": Interval(0, 2),
    "top_p": Interval(0, 1, above=True),
    "min_p": Interval(0, 1),
    "presence_penalty": Interval(-2, 2),
    "frequency_penalty": Interval(-2, 2),
    "repetition_penalty": Interval(0.01, 2),
    "top_k": Interval(-1, 2**31 - 1),
    "max_tokens": Interval(1, 2**32 - 1),
}


class Violations:
    """Collects violations; `done` raises them all, or the first ones, since they travel in metadata of limited size."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def unless(self, acceptable: bool, field: str, problem: str) -> None:
        """Adds a violation of `field` unless it is acceptable."""
        if not acceptable and len(self._found) < MAX_VIOLATIONS:
            self._found.append(FieldViolation(field, problem))

    def done(self) -> None:
        """Raises `InvalidRequest` if anything was found."""
        if self._found:
            raise InvalidRequest(*self._found)


def check_generate(message: pb.GenerateRequest, limits: LimitsConfig, defaults: DefaultsConfig) -> None:
    """Raises `InvalidRequest`."""
    found = Violations()
    check_id(found, "request_id", message.request_id)
    _check_prompt(found, message)
    if message.HasField("n"):
        found.unless(1 <= message.n <= limits.max_n, "n", f"{message.n} is not from 1 to {limits.max_n}")
    temperature = message.sampling.temperature if message.sampling.HasField("temperature") else defaults.temperature
    if temperature == 0 and message.n > 1:
        found.unless(False, "sampling.temperature", f"0 is greedy: all n = {message.n} candidates would be the same")
    _check_sampling(found, message.sampling)
    for field, problem in constraint_problems(message.sampling, limits):
        found.unless(False, field, problem)
    _check_selection(found, message.selection)
    _check_budget(found, message.budget, message.n if message.HasField("n") else defaults.n)
    _check_enum(found, "view", message.view, pb.CandidateView.keys())
    check_labels(found, message.reward_context, message.tags)
    _check_enum(found, "log_policy", message.log_policy, pb.LogPolicy.keys())
    found.done()


def check_score(message: pb.ScoreRequest, limits: LimitsConfig) -> None:
    """The same for ScoreRequest."""
    found = Violations()
    check_id(found, "request_id", message.request_id)
    _check_prompt(found, message)
    count = len(message.completions)
    found.unless(1 <= count <= limits.max_n, "completions", f"{count} given, allowed are 1 to {limits.max_n}")
    check_labels(found, message.reward_context, message.tags)
    _check_enum(found, "log_policy", message.log_policy, pb.LogPolicy.keys())
    found.done()


def check_id(found: Violations, field: str, value: str) -> None:
    """An id of a caller's, or none.

    One that begins with a control character is not shown: so a GenerateStreamRequest reads here, prompt and all.
    """
    shown = "what begins with a control character" if value[:1] < " " else _shown(value)
    found.unless(
        not value or REQUEST_ID.fullmatch(value) is not None,
        field,
        f"{shown} ({len(value)} characters) is not 1 to 128 characters of A-Z a-z 0-9 . _ : -",
    )


def _check_prompt(found: Violations, message: pb.GenerateRequest | pb.ScoreRequest) -> None:
    form = message.WhichOneof("prompt")
    if form is None:
        found.unless(False, "prompt", "none given; one of text, chat and tokens is required")
    elif form == "text":
        found.unless(bool(message.text), "text", "empty; a prompt has at least one character")
    elif form == "tokens":
        found.unless(bool(message.tokens.ids), "tokens.ids", "empty; a prompt has at least one token")
    else:
        _check_chat(found, message.chat)


def _check_chat(found: Violations, chat: pb.Chat) -> None:
    found.unless(
        any(turn.content for turn in chat.messages[:MAX_MESSAGES]),
        "chat.messages",
        f"{len(chat.messages)} messages without content; at least one with content is required",
    )
    count = len(chat.messages)
    found.unless(count <= MAX_MESSAGES, "chat.messages", f"{count} given, allowed are {MAX_MESSAGES}")
    for index, turn in enumerate(chat.messages[:MAX_MESSAGES]):
        found.unless(
            turn.role in ROLES,
            f"chat.messages[{index}].role",
            f"{_shown(turn.role)} is not one of {', '.join(ROLES)}",
        )


def _check_sampling(found: Violations, sampling: pb.SamplingParams) -> None:
    for name, allowed in SAMPLING_RANGES.items():
        if sampling.HasField(name):  # type: ignore[arg-type]
            value = getattr(sampling, name)
            found.unless(value in allowed, f"sampling.{name}", f"{value} is not {allowed}")
    if sampling.HasField("seed"):
        found.unless(
            0 <= sampling.seed <= MAX_SEED - (1 << 32),
            "sampling.seed",
            f"{sampling.seed} is not from 0 to {MAX_SEED - (1 << 32)}",
        )
    _check_stops(found, sampling)


def _check_stops(found: Violations, sampling: pb.SamplingParams) -> None:
    found.unless(
        len(sampling.stop) <= MAX_STOPS, "sampling.stop", f"{len(sampling.stop)} given, allowed are {MAX_STOPS}"
    )
    for index, stop in enumerate(sampling.stop[:MAX_STOPS]):
        found.unless(
            1 <= len(stop) <= MAX_STOP_CHARS,
            f"sampling.stop[{index}]",
            f"{len(stop)} characters long, allowed are 1 to {MAX_STOP_CHARS}",
        )
    count = len(sampling.stop_token_ids)
    found.unless(
        count <= MAX_STOP_TOKEN_IDS, "sampling.stop_token_ids", f"{count} given, allowed are {MAX_STOP_TOKEN_IDS}"
    )


def _check_selection(found: Violations, selection: pb.Selection) -> None:
    _check_enum(found, "selection.rule", selection.rule, pb.SelectionRule.keys())
    soft = selection.rule == pb.SELECTION_RULE_SOFT
    if selection.HasField("temperature"):
        positive = math.isfinite(selection.temperature) and selection.temperature > 0
        found.unless(positive, "selection.temperature", f"{selection.temperature} is not finite and above 0")
    found.unless(
        soft == selection.HasField("temperature"),
        "selection.temperature",
        "missing; the rule SOFT needs it" if soft else "given, but only the rule SOFT takes it",
    )
    found.unless(soft or not selection.HasField("seed"), "selection.seed", "given, but only the rule SOFT takes it")


def _check_budget(found: Violations, budget: pb.Budget, n: int) -> None:
    threshold, price = budget.stop_at_reward, budget.price_per_candidate
    found.unless(math.isfinite(threshold), "budget.stop_at_reward", f"{threshold} is not finite")
    if budget.HasField("price_per_candidate"):
        valid = math.isfinite(price) and price >= 0
        found.unless(valid, "budget.price_per_candidate", f"{price} is not finite and at least 0")
    if budget.HasField("min_n"):
        adaptive = budget.HasField("price_per_candidate")
        found.unless(adaptive, "budget.min_n", "given, but only an adaptive n (price_per_candidate) takes it")
        found.unless(1 <= budget.min_n <= n, "budget.min_n", f"{budget.min_n} is not from 1 to n = {n}")
    _check_pruning(found, budget)


def _check_pruning(found: Violations, budget: pb.Budget) -> None:
    share, tokens = budget.HasField("prune_fraction"), budget.HasField("prune_after_tokens")
    if share:
        between = 0 < budget.prune_fraction < 1
        found.unless(between, "budget.prune_fraction", f"{budget.prune_fraction} is not between 0 and 1")
    if tokens:
        some = budget.prune_after_tokens >= 1
        found.unless(some, "budget.prune_after_tokens", f"{budget.prune_after_tokens} is not at least 1")
    missing = "prune_after_tokens" if share else "prune_fraction"
    found.unless(share == tokens, f"budget.{missing}", "missing; pruning needs both its share and its length")


def check_labels(found: Violations, reward_context: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Reward context and tags."""
    found.unless(len(tags) <= MAX_TAGS, "tags", f"{len(tags)} given, allowed are {MAX_TAGS}")
    for key, value in islice(tags.items(), MAX_TAGS):
        found.unless(
            1 <= len(key) <= MAX_TAG_KEY_CHARS and len(value) <= MAX_TAG_VALUE_CHARS,
            f"tags[{_shown(key)}]",
            f"key of {len(key)} and value of {len(value)} characters; allowed are 1 to {MAX_TAG_KEY_CHARS} and "
            f"0 to {MAX_TAG_VALUE_CHARS}",
        )
    found.unless(
        len(reward_context) <= MAX_REWARD_CONTEXT,
        "reward_context",
        f"{len(reward_context)} entries given, allowed are {MAX_REWARD_CONTEXT}",
    )
    chars = sum(len(key) + len(value) for key, value in reward_context.items())
    found.unless(
        chars <= MAX_REWARD_CONTEXT_CHARS,
        "reward_context",
        f"{chars} characters in all, allowed are {MAX_REWARD_CONTEXT_CHARS}",
    )


def _check_enum(found: Violations, field: str, value: int, names: Iterable[str]) -> None:
    count = len(list(names))
    found.unless(0 <= value < count, field, f"{value} is not a value of its enum, which has 0 to {count - 1}")


def _shown(value: str) -> str:
    return repr(value if len(value) <= SHOWN_CHARS else value[:SHOWN_CHARS] + "…")


def constraint_problems(sampling: pb.SamplingParams, limits: LimitsConfig) -> Iterator[Problem]:
    """What is wrong with the constraint, if there is one, without repeating any of it."""
    form = sampling.WhichOneof("constraint")
    if form == "json_schema":
        field, problem = "sampling.json_schema", _schema_problem(sampling.json_schema, limits)
    elif form == "regex":
        field, problem = "sampling.regex", _regex_problem(sampling.regex, limits)
    elif form == "choice":
        field, problem = "sampling.choice.choices", _choice_problem(sampling.choice.choices, limits)
    else:
        return
    if problem is not None:
        yield field, problem


def _schema_problem(text: str, limits: LimitsConfig) -> str | None:
    size = len(text.encode())
    if size > limits.max_constraint_bytes:
        return f"{size} bytes long, allowed are {limits.max_constraint_bytes}"
    try:
        schema = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos}"
    except RecursionError:
        return f"nested far too deep, allowed are {limits.max_schema_depth} levels"
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(schema, dict):
        return f"a JSON {'list' if isinstance(schema, list) else 'value'}; a schema is an object"
    return _size_problem(schema, limits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Of a repeated key one parser takes the first value and another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _size_problem(schema: dict[str, Any], limits: LimitsConfig) -> str | None:
    """Level by level, so that no depth is too deep for Python."""
    nested: list[Any] = [schema]
    depth, values = 0, 1
    while nested:
        depth += 1
        children = [child for one in nested for child in (one.values() if isinstance(one, dict) else one)]
        values += len(children)
        nested = [child for child in children if isinstance(child, dict | list)]
    if depth > limits.max_schema_depth:
        return f"nested {depth} levels deep, allowed are {limits.max_schema_depth}"
    if values > limits.max_schema_values:
        return f"{values} values, allowed are {limits.max_schema_values}"
    return None


def _regex_problem(regex: str, limits: LimitsConfig) -> str | None:
    size = len(regex.encode())
    if not 1 <= size <= limits.max_regex_bytes:
        return f"{size} bytes long, allowed are 1 to {limits.max_regex_bytes}"
    if "\0" in regex:
        return "a NUL character, which is not allowed"
    return None


def _choice_problem(choices: Sequence[str], limits: LimitsConfig) -> str | None:
    if not 1 <= len(choices) <= limits.max_choices:
        return f"{len(choices)} given, allowed are at least one and at most {limits.max_choices}"
    if not all(choices):
        return "an empty one; a choice has at least one character"
    if len(set(choices)) < len(choices):
        return "one is given twice"
    size = sum(len(choice.encode()) for choice in choices)
    if size > limits.max_constraint_bytes:
        return f"{size} bytes in all, allowed are {limits.max_constraint_bytes}"
    return None
