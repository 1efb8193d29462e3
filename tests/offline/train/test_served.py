"""The real engine loads what was trained, and says what it learned."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from bon_server.config.settings import PolicyConfig
from bon_server.core.types import FinishReason, Message, Prompt, Sampling
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.train import train
from tests import tiny_models
from tests.offline.train.sets import make_log, select_from


@pytest.mark.models
@pytest.mark.slow
async def test_the_engine_says_what_was_learned_and_stops(tmp_path: Path) -> None:
    """One answer to all questions, learned by heart; its end is learned as well."""
    policy = tiny_models.save_policy(tmp_path / "policy", tie_word_embeddings=True)
    data = select_from(make_log(tmp_path / "log", answer="seven"), tmp_path / "set")
    document = train(
        TrainOptions(
            data=data, policy=policy, out=tmp_path / "tuned", lora=False, learning_rate=1e-2, epochs=30, batch_size=8
        )
    )
    assert document["metrics"]["last_loss"] < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM, while it is imported
        from bon_server.models.vllm.policy import VllmPolicy
    served = await VllmPolicy.start(
        PolicyConfig(model=str(tmp_path / "tuned"), dtype="float32", kv_cache_memory_bytes=64 << 20, max_num_seqs=4)
    )
    try:
        prompt = await served.encode(Prompt(messages=(Message("user", "What is 11?"),)))
        said = await served.sample("s", prompt.token_ids, Sampling(temperature=0.0, max_tokens=20))
    finally:
        await served.close()
    assert (said.text, said.finish_reason) == ("seven", FinishReason.STOP)
    assert served.files.revision == document["revision"]
