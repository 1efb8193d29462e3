"""How many connections fit into the descriptors that the process may have, beside those that the server itself needs.

Strangers who only connect must not take the descriptors with which the log is written and the metrics are answered.
"""

from __future__ import annotations

import logging
import resource
from pathlib import Path

from bon_server.core.errors import StartupError

logger = logging.getLogger(__name__)

OWN_FILES = 128
"""Kept for log, sealing, publishing, metrics, models and gRPC itself, beyond what is open at the start."""
FEWEST_CONNECTIONS = 16
"""With fewer a server cannot be used."""


def connections_that_fit(most: int) -> int:
    """At most `most`; raises the soft limit of descriptors to the hard one. Raises StartupError when hardly any fit."""
    limit = _raised_limit()
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    room = limit - open_now - OWN_FILES
    if room < FEWEST_CONNECTIONS:
        raise StartupError(
            f"only {limit} descriptors are allowed (ulimit -n, LimitNOFILE), needed are "
            f"{open_now + OWN_FILES + FEWEST_CONNECTIONS} or more"
        )
    if room < most:
        logger.warning("of limits.max_connections = %d, %d fit into %d descriptors (ulimit -n)", most, room, limit)
    return min(most, room)


def _raised_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logger.info("the limit of descriptors was raised from %d to %d, the hard limit", soft, hard)
    return hard
