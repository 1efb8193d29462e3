"""How the engine's process compiles and follows constraints. Imported by that process, through `engine_process`.

vLLM compiles a grammar for each request, that is, for each candidate; and where the library gives up in the middle,
which it does beyond its limits, vLLM lets the text end there as if it were complete.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llguidance
from vllm.v1 import structured_output
from vllm.v1.structured_output.backend_guidance import GuidanceBackend, GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from bon_server.models.vllm.grammar import limits

KEPT_GRAMMARS = 8
"""Compiled; the worst ones grow to 100 MB."""
COPIES = 128
"""Then a grammar is compiled anew, since copies share the states that they have met, and those only become more."""


@dataclass
class StrictGrammar(GuidanceGrammar):  # type: ignore[misc]
    """One candidate's place in a grammar."""

    on_error: Callable[[], None] = lambda: None

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """False, which ends the request as an error, also where the matcher gave up before these tokens."""
        if self.ll_matcher.is_error():
            self.on_error()
            return False
        return bool(super().accept_tokens(request_id, tokens))

    def check_error(self) -> None:
        """Logs nothing: the library's message repeats grammar and tokens, which are content."""


class SharedGrammars(GuidanceBackend):  # type: ignore[misc]
    """Compiles each grammar once; candidates get copies, which share what the library learns on the way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_at_a_time = threading.Lock()
        self._compiled: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> StrictGrammar:
        """A candidate's grammar; `grammar_spec` is one of llguidance, whatever the kind of constraint."""
        with self._one_at_a_time:  # otherwise all candidates of a request would find nothing compiled yet
            matcher = self._copy(grammar_spec)
        return StrictGrammar(
            ll_matcher=matcher,
            ll_tokenizer=self.ll_tokenizer,
            vocab_size=self.vocab_size,
            on_error=lambda: self._forget(grammar_spec),
        )

    def _copy(self, grammar: str) -> Any:
        matcher, left = self._compiled.pop(grammar, (None, 0))
        if matcher is None:
            matcher = llguidance.LLMatcher(self.ll_tokenizer, grammar, log_level=0, limits=limits())
            left = COPIES
        if left > 1:
            self._compiled[grammar] = (matcher, left - 1)
        if len(self._compiled) > KEPT_GRAMMARS:
            self._compiled.popitem(last=False)
        return matcher.deep_copy()

    def _forget(self, grammar: str) -> None:
        self._compiled.pop(grammar, None)  # without the lock: the engine's own thread must not wait for a compilation


def use_shared_grammars() -> None:
    """From now on the engine in this process uses the above for the backend `guidance`."""
    structured_output.GuidanceBackend = SharedGrammars
