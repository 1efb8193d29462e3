"""Deadlines from a fifth of the usual time to more than it: the best so far in time, and what was scored is not lost.

    python benchmarks/deadlines.py [--quick] [--parts synthetic,demo] [--out FILE]

For each part, four requests in flight: first without deadlines, whose median time is the usual one; then 200 (60 with
`--quick`) with deadlines drawn evenly from 20 % to 120 % of that. Afterwards each is looked up in the server's log.
`synthetic` has a policy that samples a fixed number of tokens a second, shared by all that runs, as an engine does;
`demo` the demo's models.

Progress goes to stderr; the last line of stdout is one JSON document, by part:

- `failed_share`: of the requests with a candidate scored at least `well_before_s` before their deadline (`scored_ns`
  in the log), the share that got no answer.
- `late`: requests to which the server had said nothing when their deadline came, neither answer nor refusal, or whose
  answer came after it.
- `refused_at_once`: refused before anything was sampled, since the deadline could not be met.

Nothing else should run on the machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# As a script: Python then looks in this folder first, where it would find `select.py`, and children in none of ours.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

import bon
import grpc
from bon.v1 import bon_pb2 as pb

from benchmarks.machine import machine, quiet, versions
from benchmarks.models import demo_models
from benchmarks.open_loop import client
from benchmarks.server_stack import bon_serve
from bon_server.core.types import CandidateStatus
from bon_server.demo.problems import problems
from bon_server.log.read.reader import LogReader

CONCURRENCY = 4
USUAL_REQUESTS = 16
SHORTEST, LONGEST = 0.2, 1.2
"""Deadlines, in usual times."""
WELL_BEFORE_S = 0.3
CLIENTS_OWN_WORDS = "Deadline Exceeded"
"""In what gRPC says in the client when nothing has come from the server by the deadline; the server's words are lower
case."""


@dataclass(frozen=True)
class Load:
    """What is asked of one pair of models."""

    policy: str
    reward: str
    n: int
    max_tokens: int


@dataclass(frozen=True)
class Asked:
    """One request and how it ended."""

    request_id: str
    deadline_s: float
    seconds: float
    """Until there was an answer or a refusal."""
    answer: pb.GenerateResponse | None
    details: str = ""
    """Of the refusal."""

    @property
    def late(self) -> bool:
        """Whether the server let the deadline pass."""
        return CLIENTS_OWN_WORDS in self.details or (self.answer is not None and self.seconds > self.deadline_s)


SYNTHETIC = Load("synthetic:total_tokens_per_s=4000,tokens=50", "synthetic:seconds=0.02", 16, 400)
"""3,200 tokens at a time, of four requests of 16: under a second each."""


async def measure(load: Load, requests: int, folder: Path) -> dict[str, Any]:
    """Starts a server, learns what is usual, and asks with deadlines."""
    log = folder / "log"
    arguments = ["--policy", load.policy, "--reward", load.reward, "--log", str(log)]
    questions = iter(problems("development", {"chain_sum": requests + USUAL_REQUESTS + CONCURRENCY}))
    async with bon_serve(arguments, folder) as address, client(address) as asked:

        async def ask(deadline_s: float) -> Asked:
            prompt = next(questions).prompt
            return await _ask(asked, bon.generate_request(prompt, n=load.n, max_tokens=load.max_tokens), deadline_s)

        await _in_flight(ask, [300.0] * CONCURRENCY)  # warms up
        usual_s = median(one.seconds for one in await _in_flight(ask, [300.0] * USUAL_REQUESTS))
        _say(f"usually {usual_s:.2f} s")
        dice = random.Random(1)
        ended = await _in_flight(ask, [dice.uniform(SHORTEST, LONGEST) * usual_s for _ in range(requests)])
        first_scored_s = _first_scored_s(log)
    return {**_figures(ended, first_scored_s), "usual_s": round(usual_s, 3), "load": asdict(load) | _names(load)}


async def _in_flight(ask: Any, deadlines_s: Sequence[float]) -> list[Asked]:
    """Asks them in order, `CONCURRENCY` at a time."""
    waiting = iter(deadlines_s)
    ended: list[Asked] = []

    async def caller() -> None:
        for deadline_s in waiting:
            ended.append(await ask(deadline_s))

    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return ended


async def _ask(asked: bon.AsyncClient, request: pb.GenerateRequest, deadline_s: float) -> Asked:
    began = time.perf_counter()
    answer, details = None, ""
    try:
        answer = await asked.send(request, timeout=deadline_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        details = error.details() or ""
    return Asked(request.request_id, deadline_s, time.perf_counter() - began, answer, details)


def _first_scored_s(log: Path) -> dict[str, float]:
    """Request id → seconds from its beginning to its first scored candidate; without those that have none."""
    first: dict[str, float] = {}
    with LogReader(log) as reader:
        for record in reader.records():
            scored = [c.scored_ns for c in record.candidates if c.status is CandidateStatus.SCORED and c.scored_ns]
            if scored:
                first[record.request_id] = min(scored) / 1e9
    return first


def _figures(ended: Sequence[Asked], first_scored_s: dict[str, float]) -> dict[str, Any]:
    in_time = [
        one
        for one in ended
        if one.request_id in first_scored_s and first_scored_s[one.request_id] <= one.deadline_s - WELL_BEFORE_S
    ]
    answered = [one for one in ended if one.answer is not None]
    lost = [one for one in in_time if one.answer is None]
    left_s = sorted(one.deadline_s - one.seconds for one in ended)
    return {
        "failed_share": round(len(lost) / len(in_time), 4) if in_time else None,
        "late": sum(one.late for one in ended),
        "requests": len(ended),
        "answered": len(answered),
        "of_them_partial": sum(one.answer.partial for one in answered if one.answer is not None),
        "scored_well_before": len(in_time),
        "refused_at_once": sum("leaves" in one.details for one in ended),
        "least_time_left_s": round(left_s[0], 3),
        "median_time_left_of_partial_s": _median_left(answered),
        "refusals": {words: sum(one.details == words for one in ended) for words in {one.details for one in ended}},
        "well_before_s": WELL_BEFORE_S,
    }


def _names(load: Load) -> dict[str, str]:
    """Directories by their names alone."""
    return {"policy": Path(load.policy).name, "reward": Path(load.reward).name}


def _median_left(answered: Sequence[Asked]) -> float | None:
    """How long before their deadlines the partial answers came."""
    left_s = [one.deadline_s - one.seconds for one in answered if one.answer is not None and one.answer.partial]
    return round(median(left_s), 3) if left_s else None


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 requests with deadlines instead of 200")
    parser.add_argument("--parts", default="synthetic,demo", help="synthetic, demo or both (default: both)")
    parser.add_argument("--models", type=Path, default=Path(".demo/models"), help="where the demo's models are kept")
    parser.add_argument("--work", type=Path, help="folder for the log, on the file system that is to be measured")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    options = parser.parse_args()
    at_start = quiet()
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bon-deadlines-", dir=options.work) as work:
        for part in options.parts.split(","):
            load = SYNTHETIC if part == "synthetic" else Load(*demo_models(options.models), n=8, max_tokens=48)
            folder = Path(work) / part
            folder.mkdir()
            document[part] = asyncio.run(measure(load, 60 if options.quick else 200, folder))
        document |= {"checks": {"idle_at_start": at_start.as_json()}, "machine": machine(Path(work))}
    document |= {"versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


if __name__ == "__main__":
    main()
