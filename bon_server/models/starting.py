"""From the configuration to running models: which class serves which spec.

Checks come first and load nothing; then the policy starts, and after it the reward model. Later a policy may get a
successor: the same weights once more when its engine died or hung (`restart_policy`), or new ones (`start_successor`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bon_server.config.settings import PolicyConfig, RewardConfig
from bon_server.config.specs import is_kind, model_of, split_name
from bon_server.core.best_of_n import Policy, RewardModel
from bon_server.core.errors import ConfigError
from bon_server.models.policy.synthetic import SyntheticPolicy
from bon_server.models.reward.ensemble import EnsembleReward, MemberModel, check_ensemble
from bon_server.models.reward.synthetic import SyntheticReward
from bon_server.models.weights import find_model
from bon_server.system.telemetry import Telemetry


async def check_reward(config: RewardConfig) -> None:
    """Finds what is wrong with the reward model in no time, before anything is loaded in vain.

    Raises `ConfigError` or `StartupError`.
    """
    if not config.models:
        raise ConfigError(
            "reward.models is empty: give --reward a directory, a hub id, `vllm:` and one of these, "
            "`function:module:name` or `synthetic`"
        )
    named = [split_name(entry) for entry in config.models]
    if len(named) > 1:
        check_ensemble([name for name, _ in named], config)
    for _, spec in named:
        if not is_kind(spec, "synthetic") and not is_kind(spec, "function"):
            await asyncio.to_thread(find_model, model_of(spec), config.revision)


async def start_reward(config: RewardConfig) -> MemberModel:
    """Loads the reward model or models, which `check_reward` has passed. Raises `ConfigError` or `StartupError`."""
    parts: dict[str, MemberModel] = {}
    try:
        for name, spec in map(split_name, config.models):
            parts[name] = await _start_one(name, spec, config)
    except BaseException:
        for part in parts.values():
            await part.close()
        raise
    if len(parts) == 1:
        return next(iter(parts.values()))
    return EnsembleReward(parts, config)


async def _start_one(name: str, spec: str, config: RewardConfig) -> MemberModel:
    if is_kind(spec, "synthetic"):
        return SyntheticReward.from_spec(spec, name)
    if is_kind(spec, "function"):
        from bon_server.models.reward.function import FunctionReward

        function = FunctionReward.from_spec(spec, name, config)
        try:
            await function.start()
        except BaseException:
            await function.close()
            raise
        return function
    if is_kind(spec, "vllm"):
        from bon_server.models.vllm.reward import VllmReward

        return await VllmReward.start(model_of(spec), name, config)
    from bon_server.models.reward.transformers import TransformersReward

    return await TransformersReward.start(spec, name, config)


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
    from bon_server.models.vllm.policy import VllmPolicy  # a server without a model needs neither vLLM nor torch

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
    """See `bon_server.models.vllm.successor.restart`."""
    from bon_server.models.vllm.policy import VllmPolicy
    from bon_server.models.vllm.successor import restart

    assert isinstance(lost, VllmPolicy)
    return await restart(config, lost)


async def start_successor(config: PolicyConfig, serving: RunningPolicy, directory: Path) -> RunningPolicy | None:
    """See `bon_server.models.vllm.successor.start_successor`."""
    from bon_server.models.vllm import successor
    from bon_server.models.vllm.policy import VllmPolicy

    assert isinstance(serving, VllmPolicy)
    return await successor.start_successor(config, serving, directory)
