"""From the configuration to running reward models: which class scores by which spec."""

from __future__ import annotations

import asyncio

from bon_server.config import RewardConfig
from bon_server.errors import ConfigError
from bon_server.reward.ensemble import EnsembleReward, Part, check_ensemble
from bon_server.reward.synthetic import SyntheticReward
from bon_server.specs import is_kind, model_of, split_name
from bon_server.weights import find_model


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


async def start_reward(config: RewardConfig) -> Part:
    """Loads the reward model or models, which `check_reward` has passed. Raises `ConfigError` or `StartupError`."""
    parts: dict[str, Part] = {}
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


async def _start_one(name: str, spec: str, config: RewardConfig) -> Part:
    if is_kind(spec, "synthetic"):
        return SyntheticReward.from_spec(spec, name)
    if is_kind(spec, "function"):
        from bon_server.reward.function import FunctionReward

        function = FunctionReward.from_spec(spec, name, config)
        try:
            await function.start()
        except BaseException:
            await function.close()
            raise
        return function
    if is_kind(spec, "vllm"):
        from bon_server.reward.vllm import VllmReward

        return await VllmReward.start(model_of(spec), name, config)
    from bon_server.reward.transformers import TransformersReward

    return await TransformersReward.start(spec, name, config)
