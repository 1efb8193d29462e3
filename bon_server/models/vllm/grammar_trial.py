"""Tries grammars out: a program of its own, `python -m bon_server.models.vllm.grammar_trial`.

    stdin    JSON documents, one a line: the settings (an object, see `GrammarGate`), then grammars as strings
    stdout   for each grammar a line: null, or as a string what is wrong with it

Each grammar is tried in a fork, so that what it takes has an end: of processor time, which the kernel measures and
which, unlike time on the clock, does not depend on what else runs; and of memory. A library that crashes crashes there.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sys
from typing import Any

import llguidance

from bon_server.models.vllm.grammar import limits

TRIED_TOKENS = 64
"""Drawn at random from what the grammar allows: some are cheap to compile and then slow, or stuck, at every token."""
MEMORY_BYTES = 2 << 30
NICENESS = 10
"""Those who sample have precedence."""

TOO_COMPLEX = "it is too complex: compiling it and trying it out takes more than is allowed here"
EMPTY = "nothing can satisfy it"
REASONS = {
    r"not present in a registry": "a $ref leads out of the schema, and only local ones (#/...) are followed",
    r"Pointer|\$ref": "a $ref leads nowhere",
    r"[Cc]ircular": "a $ref in a circle stands beside other keywords",
    r"Invalid type": "a type is none of JSON Schema's",
    r"Unknown format": "a format is not available here",
    r"^Expected|must be|multiple ?[oO]f": "a keyword has a value that it cannot have",
    r"lookaround": "look-around, word boundaries and anchors inside are not available",
    r"NoExtension|[Uu]nsatisfiable": EMPTY,
    r"[Tt]oo many|too large|max is|TooComplex|fuel|panic": TOO_COMPLEX,
}
"""What the library says, as a pattern, and what the caller is told: nothing of the constraint, which is content."""
KEYWORDS = re.compile(r"not|if|then|else|uniqueItems|contains|minContains|maxContains|propertyNames|minProperties|"
                      r"maxProperties|dependentRequired|dependentSchemas|dependencies|unevaluatedItems|"
                      r"unevaluatedProperties|additionalItems|\$dynamicRef|\$recursiveRef|contentSchema")  # fmt: skip
"""Of JSON Schema, those that a refusal may name."""


def main() -> None:
    """Answers until stdin ends."""
    os.nice(NICENESS)
    settings = json.loads(sys.stdin.readline())
    tokenizer = llguidance.LLTokenizer(
        settings["tokenizer"], n_vocab=settings["vocabulary_size"], eos_token=settings["end_token"]
    )
    for line in sys.stdin:
        problem = _tried_in_a_fork(tokenizer, json.loads(line), settings["cpu_s"], settings["clock_s"])
        print(json.dumps(problem), flush=True)  # noqa: T201


def _tried_in_a_fork(tokenizer: Any, grammar: str, cpu_s: float, clock_s: float) -> str | None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal ends the process
        signal.setitimer(signal.ITIMER_REAL, clock_s)  # as this one does, when nobody waits for the answer any more
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        os.write(writer, json.dumps(problem_of(tokenizer, grammar)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:  # noqa: PTH123 -- a descriptor
        said = answer.read()
    _, status = os.waitpid(child, 0)
    problem: str | None = json.loads(said) if status == 0 else TOO_COMPLEX
    return problem


def problem_of(tokenizer: Any, grammar: str) -> str | None:
    """Compiles the grammar and follows it for some tokens; None: nothing is wrong."""
    start = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if start.is_error():
        return _reason(start.get_error())
    matcher, dice = start.deep_copy(), random.Random(0)
    for _ in range(TRIED_TOKENS):
        allowed = matcher.compute_bitmask()
        if not matcher.is_error():
            matcher.consume_token(_drawn(allowed, dice))
        if matcher.is_error():
            return _reason(matcher.get_error())
        if matcher.is_stopped():  # a short text has ended, and another may lead elsewhere
            matcher = start.deep_copy()
    return None


def _drawn(allowed: bytes, dice: random.Random) -> int:
    """A token whose bit is set: the first after a random one, or else the first of all."""
    bits = int.from_bytes(allowed, "little")
    start = dice.randrange(8 * len(allowed))
    if not bits >> start:
        start = 0
    rest = bits >> start
    return start + (rest & -rest).bit_length() - 1


def _reason(error: str) -> str:
    unimplemented = re.search(r"Unimplemented keys: \[(.*)\]", error)
    if unimplemented:
        named = [key for key in re.findall(r'"([^"]*)"', unimplemented[1]) if KEYWORDS.fullmatch(key)]
        return f"not available here: {', '.join(named) or 'a keyword that it uses'}"
    syntax = re.search(r"^error: ([a-z, -]+)$", error, re.MULTILINE)
    if syntax:
        return syntax[1]
    first_line = error.partition("\n")[0]  # then comes the state of the parser, grammar included
    return next((told for said, told in REASONS.items() if re.search(said, first_line)), "it cannot be compiled")


if __name__ == "__main__":
    main()
