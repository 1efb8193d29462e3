"""Which models all stacks serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Models:
    """Directories or hub ids, and how they are loaded."""

    policy: str
    reward: str
    dtype: str
    """Of the policy, for every stack: `auto`, `bfloat16`, `float16` or `float32`."""
    gpu_memory_utilization: float
    """GPU only: share of the memory for each of the three engines that are loaded beside each other."""

    def as_json(self) -> dict[str, str | float]:
        """For the report: directories by their names alone."""
        names = {"policy": _name(self.policy), "reward": _name(self.reward)}
        return {**names, "dtype": self.dtype, "gpu_memory_utilization": self.gpu_memory_utilization}


def demo_models(folder: Path) -> tuple[str, str]:
    """Policy and reward model of the demo, built into `folder` when they are not there yet."""
    from bon_server.demo.policy_model import build_policy
    from bon_server.demo.reward_model import build_reward

    policy = build_policy(folder / "policy").resolve()
    return str(policy), str(build_reward(folder / "reward", policy).resolve())


def _name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model
