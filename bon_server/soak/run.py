"""The run: a server, a warm-up, traffic, rest, and the checks.

start ─► traffic: warm-up ─► rest: what it holds ─► traffic, memory looked at each second ─► rest ─► end ─► the log
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import bon
import grpc

from bon_server.server_process import serving
from bon_server.soak.gauges import Gauges, scrape
from bon_server.soak.ledger import Ledger
from bon_server.soak.options import SoakOptions
from bon_server.soak.process import Footprint, footprint
from bon_server.soak.report import document
from bon_server.soak.seen import Place, Rest, Seen
from bon_server.soak.traffic import Mix, traffic

MODELS = ("--policy", "synthetic:tokens=40,tokens_per_s=400", "--reward", "synthetic:seconds=0.005")
WARM_UP_SHARE, WARM_UP_S = 0.2, 180.0
"""Share of the time, and longest time, before anything is measured."""
LOOK_S, TELL_S = 1.0, 5.0
REST_S = 30.0
"""How long a server that nobody asks anything may take to let go of everything."""
Tell = Callable[[str], None]


def run_soak(options: SoakOptions, security: bon.Security, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Runs it and returns the document of `bon bench soak --json`.

    security: how a target lets callers in. tell: called every few seconds with one line. Raises `StartupError` when the
    server does not start, `grpc.RpcError` and OSError when a target or its metrics do not answer, and `LogError` for a
    log that cannot be read.
    """
    ledger = Ledger(f"soak-{uuid4().hex[:12]}")
    if options.target is not None:
        place = Place(options.target, options.metrics, None)
        seen = asyncio.run(_Run(options, place, security, ledger, tell).go())
        return document(options, seen, ledger, options.log)
    folder = Path(tempfile.mkdtemp(prefix="bon-soak-"))
    log = options.log or folder / "log"
    tell("starting a server")
    with serving(_words(options, log), folder) as address:
        ready = json.loads((folder / "ready.json").read_text(encoding="utf-8"))
        place = Place(address, ready["metrics_address"], ready["pid"])
        seen = asyncio.run(_Run(options, place, security, ledger, tell).go())
        tell("ending the server")
    told = document(options, seen, ledger, log)
    if told["ok"]:
        shutil.rmtree(folder)
    else:
        told["folder"] = str(folder)  # what the server said, and its log
    return told


def _words(options: SoakOptions, log: Path) -> list[str]:
    """Of `bon serve`. It seals several times, also in a short run."""
    seal_age_s = min(60.0, max(1.0, options.minutes * 3))
    return [*MODELS, "--log", str(log), "--set", f"log.seal_age_s={seal_age_s:g}"]


class _Run:
    """One run against a server that answers."""

    def __init__(self, options: SoakOptions, place: Place, security: bon.Security, ledger: Ledger, tell: Tell) -> None:
        self._options = options
        self._place = place
        self._security = security
        self._ledger = ledger
        self._tell = tell
        self._seen = Seen()
        self._mix = Mix(place.address, security, options.concurrency, options.cancel_share, options.seed)

    async def go(self) -> Seen:
        seen, seconds = self._seen, self._options.minutes * 60
        warm_up_s = min(WARM_UP_SHARE * seconds, WARM_UP_S)
        seen.version = await self._version()
        if self._place.metrics is not None:
            await asyncio.to_thread(scrape, self._place.metrics)
        began_s = time.monotonic()
        looking = asyncio.create_task(self._look(began_s))
        try:
            await traffic(self._mix, self._ledger, warm_up_s, self._goes_on)
            seen.before = await self._at_rest(None)
            await traffic(self._mix, self._ledger, seconds - warm_up_s, self._goes_on)
            seen.seconds = time.monotonic() - began_s
        finally:
            looking.cancel()
        seen.after = await self._at_rest(seen.before)
        try:
            await self._version()
        except grpc.RpcError:
            seen.ended = True
        return seen

    async def _version(self) -> str:
        async with bon.AsyncClient(self._place.address, attempts=1, **self._security) as client:
            version: str = (await client.server_info()).version
            return version

    def _goes_on(self) -> bool:
        return not self._seen.ended

    async def _look(self, began_s: float) -> None:
        """Each second at memory, and every few seconds a line."""
        told_s = began_s
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = time.monotonic()
            held = self._footprint()
            if self._seen.before is not None and held is not None:
                self._seen.memory.append((now_s - began_s, held.rss_bytes))
            if now_s - told_s >= TELL_S:
                told_s = now_s
                self._tell(self._line(now_s - began_s, held))

    def _footprint(self) -> Footprint | None:
        if self._place.pid is None:
            return None
        held = footprint(self._place.pid)
        self._seen.ended |= held is None
        return held

    def _line(self, elapsed_s: float, held: Footprint | None) -> str:
        total_s = self._options.minutes * 60
        held_words = f", {held.rss_bytes / 1e6:.1f} MB, {held.descriptors} descriptors" if held else ""
        rate = self._ledger.calls / elapsed_s
        return f"{elapsed_s:.0f} of {total_s:.0f} s: {self._ledger.calls:,} calls, {rate:.0f}/s{held_words}"

    async def _at_rest(self, before: Rest | None) -> Rest:
        """Waits until it has let go of everything, within limits, and returns what is there then."""
        give_up_s = time.monotonic() + REST_S
        last = None
        while True:
            now = Rest(await self._gauges(), self._footprint())
            settled = now.is_back_at(before) if before else last and now.is_back_at(last) and last.is_back_at(now)
            if settled or time.monotonic() > give_up_s:
                return now
            last = now
            await asyncio.sleep(LOOK_S)

    async def _gauges(self) -> Gauges | None:
        if self._place.metrics is None:
            return None
        try:
            return await asyncio.to_thread(scrape, self._place.metrics)
        except OSError:  # it answered at the start: now it has ended, or hangs
            return None
