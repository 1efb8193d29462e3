"""The run of a soak test: a server, a warm-up, traffic, rest, and the checks.

start ─► traffic: warm-up ─► rest: what it holds ─► traffic, memory looked at each second ─► rest ─► end ─► the log

`document` puts all checks of one run together.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import bon
import grpc

from bon_server.log.verify.verify import verify
from bon_server.loop.server_process import serving
from bon_server.loop.soak import checks
from bon_server.loop.soak.calls import promises
from bon_server.loop.soak.checks import Check
from bon_server.loop.soak.ledger import Ledger, compare
from bon_server.loop.soak.options import SoakOptions
from bon_server.loop.soak.seen import Footprint, Gauges, Rest, RunObservations, ServerAddress, footprint, scrape
from bon_server.loop.soak.traffic import Mix, traffic

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
        place = ServerAddress(options.target, options.metrics, None)
        seen = asyncio.run(_Run(options, place, security, ledger, tell).go())
        return document(options, seen, ledger, options.log)
    folder = Path(tempfile.mkdtemp(prefix="bon-soak-"))
    log = options.log or folder / "log"
    tell("starting a server")
    with serving(_words(options, log), folder) as address:
        ready = json.loads((folder / "ready.json").read_text(encoding="utf-8"))
        place = ServerAddress(address, ready["metrics_address"], ready["pid"])
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

    def __init__(
        self, options: SoakOptions, place: ServerAddress, security: bon.Security, ledger: Ledger, tell: Tell
    ) -> None:
        self._options = options
        self._place = place
        self._security = security
        self._ledger = ledger
        self._tell = tell
        self._seen = RunObservations()
        self._mix = Mix(place.address, security, options.concurrency, options.cancel_share, options.seed)

    async def go(self) -> RunObservations:
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


def document(options: SoakOptions, seen: RunObservations, ledger: Ledger, log: Path | None) -> dict[str, Any]:
    """What `bon bench soak --json` prints. log: None: not within reach. Raises `LogError` when it cannot be read."""
    made = [*_checks_of_process(options, seen), *_checks_of_gauges(options, seen)]
    made.append(checks.codes(ledger.codes, promises(may_refuse=options.target is not None)))
    made += checks.answers(ledger)
    if log is None:
        made.append(checks.left_out("log", "every acknowledged id once", "give --log the folder of the target's log"))
    else:
        made += [*checks.log_complete(compare(log, ledger)), checks.log_verified(verify(log))]
    return {
        "ok": all(check.passed is not False for check in made),
        "target": options.target,
        "version": seen.version,
        "seconds": round(seen.seconds, 1),
        "concurrency": options.concurrency,
        "cancel_share": options.cancel_share,
        "seed": options.seed,
        "calls": ledger.calls,
        "acknowledged": len(ledger.acknowledged),
        "feedback": len(ledger.feedback),
        "replayed": ledger.replayed,
        "codes": {kind: dict(ended) for kind, ended in sorted(ledger.codes.items())},
        "memory_mb": _thinned(seen.memory),
        "checks": [asdict(check) for check in made],
    }


def _thinned(samples: Sequence[tuple[float, int]]) -> list[tuple[int, float]]:
    """At most 60 of them, as seconds and MB."""
    return [(round(seconds), round(rss / 1e6, 1)) for seconds, rss in samples[:: len(samples) // 60 + 1]]


def _checks_of_process(options: SoakOptions, seen: RunObservations) -> list[Check]:
    before, after = (rest.footprint if rest else None for rest in (seen.before, seen.after))
    limit = options.memory_limit_mb_per_min
    if options.target is not None and not seen.ended:
        return [checks.left_out("memory, descriptors, threads", "", "the target is no process of this command")]
    if seen.ended or before is None or after is None:
        return [Check("server", False, None, "lives to the end", "it does not answer any more, or there is no /proc")]
    return [
        checks.memory(seen.memory, limit),
        checks.flat("descriptors", before.descriptors, after.descriptors, checks.SPARE_DESCRIPTORS),
        checks.flat("threads", before.threads, after.threads, checks.SPARE_THREADS),
    ]


def _checks_of_gauges(options: SoakOptions, seen: RunObservations) -> list[Check]:
    before, after = (rest.gauges if rest else None for rest in (seen.before, seen.after))
    if options.target is not None and options.metrics is None:
        return [checks.left_out("tasks, permits, calls", "as before", "give --metrics the target's")]
    if before is None or after is None:
        return [Check("tasks, permits, calls", False, None, "as before", "the metrics do not answer any more")]
    return [
        checks.flat("tasks", before.tasks, after.tasks, 0),
        checks.at_zero("permits held", after.permits),
        checks.at_zero("candidates queued", after.queued),
        checks.at_zero("attempts", after.attempts),
        checks.at_zero("calls not ended", after.calls),
    ]
