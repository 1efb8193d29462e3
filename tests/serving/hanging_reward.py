"""A verifier that never comes back on some inputs, named `function:tests.serving.hanging_reward:reward`."""

from __future__ import annotations

import re


def reward(*, prompt: str, completion: str, context: object) -> float:
    """The length; for the prompt `bad` a regular expression that holds the interpreter's lock for years."""
    if "bad" in prompt:
        re.match(r"(a+)+$", "a" * 64 + "b")
    return float(len(completion))
