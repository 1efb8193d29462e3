"""All checks of one run, as a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bon_server.log.verify import verify
from bon_server.soak import checks
from bon_server.soak.calls import promises
from bon_server.soak.checks import Check
from bon_server.soak.ledger import Ledger
from bon_server.soak.logged import compare
from bon_server.soak.options import SoakOptions
from bon_server.soak.seen import Seen


def document(options: SoakOptions, seen: Seen, ledger: Ledger, log: Path | None) -> dict[str, Any]:
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


def _checks_of_process(options: SoakOptions, seen: Seen) -> list[Check]:
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


def _checks_of_gauges(options: SoakOptions, seen: Seen) -> list[Check]:
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
