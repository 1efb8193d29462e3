"""`bon serve`, forked from a process that has all imports done: starting Python would take most of the time.

Everything after the imports is what the command does. The process that is forked from must not have used gRPC.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bon_server import cli
from bon_server.log.publish import publisher, publishing
from bon_server.log.seal import sealer
from bon_server.system.child_process import live_and_die_with_parent

NEEDED = (
    "uvloop",
    "bon_server.log.publish.publisher",
    "bon_server.models.policy.synthetic",
    "bon_server.models.reward.synthetic",
    "bon_server.serving.lifecycle.signals",
    "bon_server.serving.telemetry.log_lines",
    "bon_server.serving.lifecycle.server",
    "bon_server.serving.lifecycle.signals",
    __name__,
)
"""What `bon serve` imports when it runs, for `set_forkserver_preload`."""


def serve(words: list[str], output: Path) -> None:
    """The life of a server, in a process group of its own. output: where its lines go."""
    live_and_die_with_parent()
    lines = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(lines, stream)
    # So that a short life meets sealing, expiry and publishing too.
    sealer.CHECK_S = sealer.EXPIRE_S = 0.1
    publisher.CHECK_S = 0.3
    publishing.FIRST_PAUSE_S = 0.1
    sys.argv = ["bon", "serve", *words]
    cli.main()
