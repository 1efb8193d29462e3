"""The whole server: `bon serve` in a process of its own, asked through the gRPC client; scores, and syncs its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bon
from bon.v1 import bon_pb2 as pb

from benchmarks.early_stopping_arms import ARMS, CHOSEN
from benchmarks.load import Asked
from benchmarks.models import Models
from benchmarks.workload import Question, Sampling
from bon_server.loop.server_process import serving

TIMEOUT_S = 600.0


class ServerStack:
    """A running `bon serve` with its client."""

    def __init__(
        self, name: str, client: bon.AsyncClient, sampling: Sampling, budget: Mapping[str, Any] | None = None
    ) -> None:
        """budget: options of a request that may stop early, in place of `sampling.n` candidates."""
        self.name = name
        self._client = client
        self._sampling = sampling
        self._budget = budget

    async def prepare(self) -> None:
        """Nothing to do."""

    async def ask(self, question: Question) -> Asked:
        """The winner alone comes back; all candidates are in the log by then."""
        answer = await self._client.send(self._request(question), timeout=TIMEOUT_S)
        if self._budget is None and answer.n_scored != self._sampling.n:
            raise RuntimeError(f"{answer.n_scored} of {self._sampling.n} candidates were scored: {question.prompt!r}")
        return Asked(answer.usage.completion_tokens, answer.best.reward)

    async def scored(self, question: Question) -> tuple[list[str], list[float]]:
        """Texts and rewards of all candidates."""
        request = self._request(question)
        request.view = pb.CANDIDATE_VIEW_ALL
        answer = await self._client.send(request, timeout=TIMEOUT_S)
        return [each.text for each in answer.candidates], [each.reward for each in answer.candidates]

    def _request(self, question: Question) -> pb.GenerateRequest:
        return bon.generate_request(
            question.prompt,
            **(self._budget or {"n": self._sampling.n}),
            temperature=self._sampling.temperature,
            max_tokens=self._sampling.max_tokens,
            seed=question.seed,
        )


@asynccontextmanager
async def whole_server(models: Models, sampling: Sampling, folder: Path) -> AsyncIterator[list[ServerStack]]:
    """Starts server and client; yields the two ways to ask it. `folder` gets the log and the server's output."""
    arguments = ["--policy", models.policy, "--reward", models.reward, "--log", str(folder / "log")]
    arguments += [
        "--set",
        f"policy.dtype={models.dtype}",
        "--set",
        f"policy.gpu_memory_utilization={models.gpu_memory_utilization}",
    ]
    async with bon_serve(arguments, folder) as address, bon.AsyncClient(address) as client:
        early = next(arm.options for arm in ARMS if arm.name == CHOSEN)
        yield [
            ServerStack("server", client, sampling),
            ServerStack("server_early_stop", client, sampling, early),
        ]


@asynccontextmanager
async def bon_serve(arguments: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """`bon serve` on free ports; yields its address without blocking the event loop while it loads."""
    server = serving(arguments, folder)
    address = await asyncio.to_thread(server.__enter__)
    try:
        yield address
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
