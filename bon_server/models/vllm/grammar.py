"""Constraints as grammars of llguidance, the library that masks tokens for them.

It was chosen over xgrammar, vLLM's first choice, because it compiles lazily and under limits, and because it refuses
what it does not implement (`not`, `uniqueItems`, a foreign `$ref`), where xgrammar lets anything pass. Figures are in
docs/decisions.md.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

import llguidance

from bon_server.core.types import Sampling

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_LEXER_STATES = 50_000
"""Of one grammar, all candidates together. A state takes 1 to 2 kB; usual grammars have less than a thousand."""
JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}
"""JSON on one line, as most models write it: where whitespace is free, some pad with it until the length ends them.
Overrides what a schema may say itself under `x-guidance`; with `lenient` it would be followed in part only."""


def grammar_of(sampling: Sampling) -> str | None:
    """The grammar of the constraint; None: there is no constraint. Raises ValueError for a schema that is no object."""
    return _grammar(sampling.json_schema, sampling.regex, sampling.choice)


def limits() -> llguidance.LLParserLimits:
    """Of memory and time; beyond them a grammar is an error. The same where it is tried and where it is used."""
    return llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES)


@lru_cache(maxsize=64)  # each candidate asks
def _grammar(json_schema: str | None, regex: str | None, choice: tuple[str, ...] | None) -> str | None:
    if json_schema is not None:
        return str(llguidance.LLMatcher.grammar_from_json_schema(json_schema, overrides=JSON_OPTIONS))
    if regex is not None:
        return str(llguidance.LLMatcher.grammar_from_regex(regex))
    if choice is not None:
        return str(llguidance.grammar_from("choice", json.dumps(choice)))
    return None
