"""The whole server: `bon serve` in a process of its own, asked through the gRPC client; scores, and syncs its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import bon
from bon.v1 import bon_pb2 as pb

from benchmarks.models import Models
from benchmarks.workload import Question, Sampling
from bon_server.demo.server_process import serving

TIMEOUT_S = 600.0


class ServerStack:
    """A running `bon serve` with its client."""

    name = "server"

    def __init__(self, client: bon.AsyncClient, sampling: Sampling) -> None:
        self._client = client
        self._sampling = sampling

    async def prepare(self) -> None:
        """Nothing to do."""

    async def ask(self, question: Question) -> int:
        """The winner alone comes back; all candidates are in the log by then."""
        answer = await self._client.send(self._request(question), timeout=TIMEOUT_S)
        if answer.partial or answer.n_scored != self._sampling.n:
            raise RuntimeError(f"{answer.n_scored} of {self._sampling.n} candidates were scored: {question.prompt!r}")
        return answer.usage.completion_tokens

    async def scored(self, question: Question) -> tuple[list[str], list[float]]:
        """Texts and rewards of all candidates."""
        request = self._request(question)
        request.view = pb.CANDIDATE_VIEW_ALL
        answer = await self._client.send(request, timeout=TIMEOUT_S)
        return [each.text for each in answer.candidates], [each.reward for each in answer.candidates]

    def _request(self, question: Question) -> pb.GenerateRequest:
        return bon.generate_request(
            question.prompt,
            n=self._sampling.n,
            temperature=self._sampling.temperature,
            max_tokens=self._sampling.max_tokens,
            seed=question.seed,
        )


@asynccontextmanager
async def whole_server(models: Models, sampling: Sampling, folder: Path) -> AsyncIterator[ServerStack]:
    """Starts server and client. `folder` gets the log and the server's output."""
    arguments = ["--policy", models.policy, "--reward", models.reward, "--log", str(folder / "log")]
    arguments += [
        "--set",
        f"policy.dtype={models.dtype}",
        "--set",
        f"policy.gpu_memory_share={models.gpu_memory_share}",
    ]
    async with bon_serve(arguments, folder) as address, bon.AsyncClient(address) as client:
        yield ServerStack(client, sampling)


@asynccontextmanager
async def bon_serve(arguments: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """`bon serve` on free ports; yields its address without blocking the event loop while it loads."""
    server = serving(arguments, folder)
    address = await asyncio.to_thread(server.__enter__)
    try:
        yield address
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
