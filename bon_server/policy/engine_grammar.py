"""How the engine's process compiles and follows constraints. Imported by that process, through `engine_process`.

vLLM compiles a grammar for each request, that is, for each candidate; and where the library gives up in the middle,
which it does beyond its limits, vLLM lets the text end there as if it were complete.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import llguidance
from vllm.v1 import structured_output
from vllm.v1.structured_output.backend_guidance import GuidanceBackend, GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from bon_server.policy.grammar import limits

KEPT_GRAMMARS = 16
"""Compiled; one can take some 20 MB."""


class StrictGrammar(GuidanceGrammar):  # type: ignore[misc]
    """One candidate's place in a grammar."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """False, which ends the request as an error, also where the matcher gave up before these tokens."""
        return not self.ll_matcher.is_error() and bool(super().accept_tokens(request_id, tokens))


class SharedGrammars(GuidanceBackend):  # type: ignore[misc]
    """Compiles each grammar once; candidates get copies, which share what the library learns on the way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_at_a_time = threading.Lock()
        self._compiled = lru_cache(maxsize=KEPT_GRAMMARS)(self._compile)

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> StrictGrammar:
        """A candidate's grammar; `grammar_spec` is one of llguidance, whatever the kind of constraint."""
        with self._one_at_a_time:  # otherwise all candidates of a request would find nothing compiled yet
            matcher = self._compiled(grammar_spec).deep_copy()
        return StrictGrammar(ll_matcher=matcher, ll_tokenizer=self.ll_tokenizer, vocab_size=self.vocab_size)

    def _compile(self, grammar: str) -> Any:
        return llguidance.LLMatcher(self.ll_tokenizer, grammar, log_level=0, limits=limits())


def use_shared_grammars() -> None:
    """From now on the engine in this process uses the above for the backend `guidance`."""
    structured_output.GuidanceBackend = SharedGrammars
