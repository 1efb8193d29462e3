"""Online reinforcement learning with TRL's GRPO: one run, and a whole model at each of several steps of it.

    python -m benchmarks.arms.online_rl --policy M --reward R --prompts FILE.jsonl --out DIR --stops 20,40,80

Run as a process of its own, by `kl_reward.py`. Goes on from its last checkpoint. The reward is what `bon serve` would
give. Low-rank updates; no KL penalty (beta 0): Gao et al. 2022 found that it acts as stopping earlier does. The last
line of stdout is a JSON document: for each stop the tokens sampled and trained on until then.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from bon_server.config.settings import RewardConfig
from bon_server.core.types import Message, Prompt
from bon_server.offline.train.train import keep_freed_memory

CPU_MICRO_BATCH = 8
"""Answers whose gradients are computed at once on a CPU: as fast as 24, in half the memory."""


def main() -> None:
    """Trains, and writes `DIR/step-N` for each stop."""
    options = _options()
    trainer = _trainer(options)
    checkpoints = sorted(options.out.glob("checkpoints/checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if checkpoints else None)
    tokens = _tokens(trainer, options.stops)
    for stop in options.stops:
        _write_model(options, stop)
    print(json.dumps({"stops": {str(stop): tokens[stop] for stop in options.stops}}))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stops", type=_stops, required=True, help="steps, comma-separated, the last one ends the run")
    parser.add_argument("--group", type=int, default=8, help="answers to a prompt")
    parser.add_argument("--batch", type=int, default=32, help="answers a step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _stops(given: str) -> list[int]:
    return sorted(map(int, given.split(",")))


def _trainer(options: argparse.Namespace) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    on_gpu = torch.cuda.is_available()
    micro_batch = options.batch if on_gpu else math.gcd(options.batch, CPU_MICRO_BATCH)
    if not on_gpu:
        keep_freed_memory()
    config = GRPOConfig(
        output_dir=str(options.out / "checkpoints"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=options.batch // micro_batch,
        num_generations=options.group,
        max_completion_length=options.max_tokens,
        temperature=options.temperature,
        beta=0.0,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        max_steps=options.stops[-1],
        save_steps=math.gcd(*options.stops),
        logging_steps=1,
        seed=options.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=False,
    )
    lines = [json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    rows = [{"prompt": _messages(line["prompt"])} for line in lines]
    model = AutoModelForCausalLM.from_pretrained(options.policy, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.policy, padding_side="left")
    return GRPOTrainer(
        model=model,
        reward_funcs=_reward_function(options.reward),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"
        ),
    )


def _messages(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _reward_function(reward: str) -> Any:
    """What TRL calls with a batch of conversations; the rewards are those of the server."""
    from bon_server.models.reward.classifier import Classifier

    classifier = Classifier.load(reward, RewardConfig(models=(reward,)))

    def rewards(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        pairs = [
            classifier.tokenize(Prompt(messages=tuple(Message(**turn) for turn in prompt)), completion[0]["content"])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return classifier.rewards(pairs)

    return rewards


def _tokens(trainer: Any, stops: list[int]) -> dict[int, dict[str, float]]:
    """Sampled, and sampled plus prompts (what the updates read), up to each stop."""
    history = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry]
    batch = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    batch *= trainer.args.world_size
    return {
        stop: {
            "sampled_tokens": sum(batch * each["completions/mean_length"] for each in history if each["step"] <= stop),
            "trained_tokens": max((each["num_tokens"] for each in history if each["step"] <= stop), default=0),
        }
        for stop in stops
    }


def _write_model(options: argparse.Namespace, stop: int) -> None:
    """The policy with the adapter of a checkpoint merged in, in 32 bits: an early stop's changes are small."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.policy, dtype=torch.float32)
    adapter = options.out / "checkpoints" / f"checkpoint-{stop}"
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(options.out / f"step-{stop}")
    AutoTokenizer.from_pretrained(options.policy).save_pretrained(options.out / f"step-{stop}")


if __name__ == "__main__":
    main()
