"""From the configuration to running models: which class serves which spec."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bon_server.best_of_n import Policy, RewardModel
from bon_server.config import PolicyConfig
from bon_server.engine.telemetry import Telemetry
from bon_server.errors import ConfigError
from bon_server.policy.synthetic import SyntheticPolicy
from bon_server.reward.starting import check_reward as check_reward
from bon_server.reward.starting import start_reward as start_reward
from bon_server.specs import is_kind
from bon_server.weights import find_model


class Started(Protocol):
    """What a started model of either kind offers to the server, besides its work."""

    @property
    def facts(self) -> Mapping[str, str | int]:
        """For the start-up banner: device, dtype, bytes of weights and the like."""

    @property
    def engines(self) -> tuple[Telemetry, ...]:
        """Whether what computes makes progress, and what vLLM's engines tell of themselves; empty: nothing can hang."""

    async def close(self) -> None:
        """Releases everything; does not hang."""


class RunningPolicy(Policy, Started, Protocol):
    """A policy with its lifecycle."""

    @property
    def healthy(self) -> bool:
        """False once its engine has died."""


class RunningReward(RewardModel, Started, Protocol):
    """A reward model with its lifecycle."""

    @property
    def healthy(self) -> bool:
        """False once it can score no more."""


async def start_policy(config: PolicyConfig) -> RunningPolicy:
    """Loads the policy. Raises `ConfigError` or `StartupError`."""
    if not config.model:
        raise ConfigError("policy.model is empty: give --policy a directory, a hub id or `synthetic`")
    if is_kind(config.model, "synthetic"):
        return SyntheticPolicy.from_spec(config.model)
    # Importing vLLM takes many seconds; a wrong path can be told at once.
    await asyncio.to_thread(find_model, config.model, config.revision)
    from bon_server.policy.vllm import VllmPolicy  # a server without a model needs neither vLLM nor torch

    return await VllmPolicy.start(config)


def check_watch(config: PolicyConfig) -> None:
    """Raises `ConfigError` where `policy.watch` cannot work."""
    if config.watch is None:
        return
    if not Path(config.watch).is_dir():
        raise ConfigError(f"policy.watch = {config.watch!r}: no such directory")
    if is_kind(config.model, "synthetic"):
        raise ConfigError("policy.watch needs a policy with weights, and policy.model is synthetic")


def check_restarts(config: PolicyConfig) -> None:
    """Raises `ConfigError` where `policy.restarts` cannot work."""
    if config.restarts and is_kind(config.model, "synthetic"):
        raise ConfigError(f"policy.restarts = {config.restarts} needs an engine, and policy.model is synthetic")


def is_hung(model: Started, engine_stall_s: float) -> bool:
    """Whether an engine, forward pass or pool has work and makes no step; vLLM calls such an engine healthy."""
    return any(engine.stalled_s > engine_stall_s for engine in model.engines)


async def restart_policy(config: PolicyConfig, lost: RunningPolicy) -> RunningPolicy:
    """See `bon_server.policy.restart.restart`."""
    from bon_server.policy.restart import restart
    from bon_server.policy.vllm import VllmPolicy

    assert isinstance(lost, VllmPolicy)
    return await restart(config, lost)


async def start_successor(config: PolicyConfig, serving: RunningPolicy, directory: Path) -> RunningPolicy | None:
    """See `bon_server.policy.successor.start_successor`."""
    from bon_server.policy import successor
    from bon_server.policy.vllm import VllmPolicy

    assert isinstance(serving, VllmPolicy)
    return await successor.start_successor(config, serving, directory)
