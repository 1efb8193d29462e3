"""What libraries say while the interpreter ends."""

from __future__ import annotations

import os
import sys


def mute_the_end() -> None:
    """For `atexit`, registered before vLLM is imported, so that it runs last: ends what goes to stderr after it.

    Triton, which vLLM imports, lists there what it leaks, a page of it after each orderly end of a server (triton 3.9).
    """
    if "triton" in sys.modules:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
