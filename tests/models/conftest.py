"""Tiny models, made once, and one real engine for all tests of this folder: starting one takes half a minute."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from bon_server.config.settings import PolicyConfig
from tests import tiny_models

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy


@pytest.fixture(scope="session", autouse=True)
def digest_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests of test files do not belong into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny language model."""
    return tiny_models.save_policy(tmp_path_factory.mktemp("policy"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def policy(model_directory: Path) -> AsyncIterator[VllmPolicy]:
    """A real vLLM engine on the tiny model, in 32 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM, while it is imported
        from bon_server.models.vllm.policy import VllmPolicy
    started = await VllmPolicy.start(
        PolicyConfig(
            model=str(model_directory), dtype="float32", kv_cache_memory_bytes=256 << 20, max_num_seqs=64, seed=0
        )
    )
    yield started
    await started.close()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny encoder."""
    return tiny_models.save_encoder_reward(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny decoder whose padding token also ends turns."""
    return tiny_models.save_decoder_reward(tmp_path_factory.mktemp("decoder"))
