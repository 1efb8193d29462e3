"""Twice the capacity: are refusals fast, does the rest take no longer, and is as much answered as ever?

    python benchmarks/overload.py [--quick] [--parts synthetic,demo] [--out FILE]

For each part: the capacity in a closed loop that keeps every permit taken, then open loops of random (Poisson)
arrivals at that rate and at twice that rate, from eight connections; latency counts from when a request was due.
`synthetic` has a policy that samples a fixed number of tokens a second, shared by all that runs, as an engine does;
`demo` the demo's models. Limits are the server's defaults, except where `limits` in the document says otherwise.

Progress goes to stderr; the last line of stdout is one JSON document, by part:

- `refusal_max_ms`, `refusal_p99_ms`: from when a request that is refused was due to its refusal, at twice the capacity.
- `admitted_p99_ratio`: 99th percentile of the answered ones' latency, at twice the capacity ÷ at capacity.
- `goodput_ratio`: answers a second at twice the capacity ÷ the best of all loads.
- `modest_wait_ratio`: of a connection that asks for few candidates now and then, beside one that asks for many at twice
  the capacity: 99th percentile of its wait for a permit ÷ the other one's. `modest_refused`: how many of its requests
  were refused.

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
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import bon
import grpc
from bon.v1 import bon_pb2 as pb

from benchmarks.machine import machine, quiet, versions
from benchmarks.models import demo_models
from benchmarks.open_loop import Ended, asker, client, closed_loop, latencies, open_loop, rate
from benchmarks.server_stack import bon_serve
from bon_server.demo.problems import problems

CONNECTIONS = 8
REFUSED, ANSWERED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK


@dataclass(frozen=True)
class Load:
    """What is asked of one pair of models."""

    policy: str
    reward: str
    n: int
    max_tokens: int
    limits: dict[str, int]
    """Settings of `limits` that are not the defaults."""
    in_flight: int
    seconds: float
    """Length of each load."""
    settle_s: float
    """Its beginning, in which the server fills up and nothing is counted."""


def synthetic(seconds: float) -> Load:
    """10,000 tokens a second, 50 to a candidate on average: about 12 requests a second, in 2.5 s each."""
    spec = "synthetic:total_tokens_per_s=10000,tokens=50"
    return Load(spec, "synthetic", 16, 1000, {}, 512, seconds, 8.0)


def demo(policy: str, reward: str, seconds: float) -> Load:
    """About one request a second on two cores; fewer permits, or a minute would end before the first answers."""
    limits = {"max_n": 64, "max_candidates_in_flight": 64}
    return Load(policy, reward, 8, 48, limits, 64, seconds, 10.0)


async def measure(load: Load, folder: Path) -> dict[str, Any]:
    """Starts a server and overloads it."""
    arguments = ["--policy", load.policy, "--reward", load.reward, "--log", str(folder / "log")]
    for name, value in load.limits.items():
        arguments += ["--set", f"limits.{name}={value}"]
    async with bon_serve(arguments, folder) as address, AsyncExitStack() as open_clients:
        clients = [await open_clients.enter_async_context(client(address)) for _ in range(CONNECTIONS)]
        ask = asker(clients, Requests(load.n, load.max_tokens))
        full = -(-load.in_flight // load.n)
        _say("capacity")
        closed = await closed_loop(ask, full, load.seconds)
        capacity = rate(closed, load.settle_s, load.seconds)
        _say(f"{capacity:.2f} answers a second; now as an open loop")
        at_capacity = await open_loop(ask, capacity, load.seconds, seed=1)
        _say("twice as many")
        overloaded = await open_loop(ask, 2 * capacity, load.seconds, seed=2)
        _say("beside a greedy caller")
        modest, greedy = await _side_by_side(load, clients, capacity)
    return {
        **_headline(load, closed, at_capacity, overloaded),
        **_fairness(load, modest, greedy),
        "capacity_per_s": round(capacity, 3),
        "loads": {
            "closed": _figures(load, closed, load.seconds),
            "at_capacity": _figures(load, at_capacity, load.seconds),
            "twice_the_capacity": _figures(load, overloaded, load.seconds),
            "modest": _figures(load, modest, load.seconds),
            "greedy": _figures(load, greedy, load.seconds),
        },
        "load": asdict(load) | {"policy": Path(load.policy).name, "reward": Path(load.reward).name},
    }


async def _side_by_side(
    load: Load, clients: Sequence[bon.AsyncClient], capacity: float
) -> tuple[list[Ended], list[Ended]]:
    """A connection with small requests, a tenth of the capacity, and one with large ones, twice the capacity."""
    small, large = max(1, load.n // 4), 4 * load.n
    candidates_per_s = capacity * load.n
    return await asyncio.gather(
        open_loop(
            asker(clients[:1], Requests(small, load.max_tokens)), 0.1 * candidates_per_s / small, load.seconds, 3
        ),
        open_loop(asker(clients[1:2], Requests(large, load.max_tokens)), 2 * candidates_per_s / large, load.seconds, 4),
    )


class Requests:
    """Makes requests, each for another prompt."""

    def __init__(self, n: int, max_tokens: int) -> None:
        self._n, self._max_tokens = n, max_tokens
        self._prompts = [problem.prompt for problem in problems("development", {"chain_sum": 400})]
        self._asked = 0

    def __call__(self) -> pb.GenerateRequest:
        """The next one."""
        self._asked += 1
        prompt = self._prompts[self._asked % len(self._prompts)]
        return bon.generate_request(prompt, n=self._n, max_tokens=self._max_tokens)


def _headline(
    load: Load, closed: Sequence[Ended], at_capacity: Sequence[Ended], overloaded: Sequence[Ended]
) -> dict[str, Any]:
    refused = latencies(overloaded, REFUSED)
    p99 = [latencies(ended, ANSWERED, load.settle_s).get("p99_s") for ended in (at_capacity, overloaded)]
    best = max(rate(closed, load.settle_s, load.seconds), rate(at_capacity, load.settle_s, load.seconds))
    goodput = rate(overloaded, load.settle_s, load.seconds)
    return {
        "refusal_p99_ms": _ms(refused.get("p99_s")),
        "refusal_max_ms": _ms(refused.get("max_s")),
        "admitted_p99_ratio": _ratio(p99[1], p99[0]),
        "goodput_ratio": _ratio(goodput, max(best, goodput)),
    }


def _fairness(load: Load, modest: Sequence[Ended], greedy: Sequence[Ended]) -> dict[str, Any]:
    waits = [latencies(ended, ANSWERED, load.settle_s).get("waited_p99_s") for ended in (modest, greedy)]
    return {
        "modest_wait_ratio": _ratio(*waits),
        "modest_refused": sum(one.code is REFUSED for one in modest),
    }


def _figures(load: Load, ended: Sequence[Ended], seconds: float) -> dict[str, Any]:
    codes = sorted({one.code.name for one in ended})
    return {
        "answers_per_s": round(rate(ended, load.settle_s, seconds), 3),
        **{name.lower(): latencies(ended, grpc.StatusCode[name], load.settle_s) for name in codes},
    }


def _ratio(ours: float | None, other: float | None) -> float | None:
    return None if ours is None or not other else round(ours / other, 3)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="loads of 24 seconds instead of 60")
    parser.add_argument("--parts", default="synthetic", help="synthetic, demo or both (default: synthetic)")
    parser.add_argument("--models", type=Path, default=Path(".demo/models"), help="where the demo's models are kept")
    parser.add_argument("--work", type=Path, help="folder for the log, on the file system that is to be measured")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    options = parser.parse_args()
    seconds = 24.0 if options.quick else 60.0
    at_start = quiet()
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bon-overload-", dir=options.work) as work:
        for part in options.parts.split(","):
            load = synthetic(seconds) if part == "synthetic" else demo(*demo_models(options.models), seconds)
            folder = Path(work) / part
            folder.mkdir()
            document[part] = asyncio.run(measure(load, folder))
        document |= {"checks": {"idle_at_start": at_start.as_json()}, "machine": machine(Path(work))}
    document |= {"versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


if __name__ == "__main__":
    main()
