"""What a constraint may be, whichever policy follows it: its form and size. What it costs, the policy finds out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bon.v1 import bon_pb2 as pb

from bon_server.config import LimitsConfig

Problem = tuple[str, str]
"""Field and problem."""


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
