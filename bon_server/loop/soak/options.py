"""What `bon bench soak` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec import Meta

from bon_server.config.options import CallSeed, RequestsInFlight, Share


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """One run against a server."""

    minutes: Annotated[float, Meta(ge=0.02)] = 30.0
    """Send traffic for so many minutes, of which the first fifth, at most 3, warms up."""
    concurrency: RequestsInFlight = 32
    """Keep so many requests in flight."""
    cancel_share: Share = 0.2
    """Let the callers of this share of the calls leave before the answer."""
    seed: CallSeed = 0
    """Draw what callers do from this seed."""
    memory_limit_mb_per_min: Annotated[float, Parameter(name="--memory-limit")] = 1.0
    """Fail when the memory of the server grows by more than so many MB a minute."""
    target: str | None = None
    """Call the server that runs at this address, HOST:PORT. Default: start one, with synthetic models."""
    metrics: str | None = None
    """Read the metrics of the target at this address, HOST:PORT. Default: do not look at them."""
    log: Path | None = None
    """Compare with the target's log in this folder, if it is on this machine; or keep the log of the started server
    here. Default: do not look, or a folder that is removed."""
