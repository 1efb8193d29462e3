"""Messages of vLLM that repeat what callers sent or what was sampled. Imported by the engine's process."""

from __future__ import annotations

import logging
from functools import partial

WITH_CONTENT = {
    "vllm.logging_utils.dump_input": "Dumping scheduler output",
    "vllm.v1.core.sched.scheduler": "grammar rejected",
}
"""Logger, and words of the message: all that was to be computed when a step failed, with constraints and stop texts;
the tokens at which a candidate failed on its grammar."""


def keep_content_out_of_the_log() -> None:
    """From now on these messages are not written by this process."""
    for name, words in WITH_CONTENT.items():
        logging.getLogger(name).addFilter(partial(_is_without, words))


def _is_without(words: str, entry: logging.LogRecord) -> bool:
    return words not in str(entry.msg)
