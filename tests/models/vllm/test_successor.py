"""Real engines: a change of weights under load, and checkpoints that leave what is served as it is."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
import torch
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import StartupError
from bon_server.log.read.reader import LogReader
from bon_server.models.policy.reference import expected_logprobs
from bon_server.serving.lifecycle.server import Server
from bon_server.system.child_process import in_child_async
from tests import tiny_models
from tests.conftest import synthetic_config
from tests.waiting import until

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

KV_CACHE_BYTES = 64 << 20
LONGEST_S = 120.0


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkpoint of the same kind, to spoil."""
    return tiny_models.save_policy(tmp_path / "other", weights_seed=1)


async def refusal(policy: VllmPolicy, directory: Path, **settings: Any) -> str:
    """Why a checkpoint may not take the policy's place; the policy samples as before."""
    from bon_server.models.vllm.successor import start_successor

    with pytest.raises(StartupError) as caught:
        await start_successor(PolicyConfig(kv_cache_memory_bytes=KV_CACHE_BYTES, **settings), policy, directory)
    assert policy.healthy
    return str(caught.value)


def spoil_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def take_weights_away(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def take_tokenizer_away(directory: Path) -> None:
    for path in directory.glob("token*"):
        path.unlink()


def cut(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1000])


def name_a_missing_file(directory: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))


def change_template(directory: Path) -> None:
    tiny_models.byte_tokenizer("{{ messages[0].content }}").save_pretrained(directory)


def change_shape(directory: Path) -> None:
    spoil_weights(directory, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))


def one_not_a_number(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan

    spoil_weights(directory, change)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "cannot be read"),
    "no weights": (take_weights_away, "no weights"),
    "truncated": (cut, "damaged"),
    "half written": (name_a_missing_file, "model-2.safetensors is missing"),
    "no tokenizer": (take_tokenizer_away, "tokenizer"),
    "another template": (change_template, "chat template"),
    "another architecture": (change_config, "rms_norm_eps"),
    "another shape": (change_shape, r"\[65\]"),
    "not a number": (one_not_a_number, r"up_proj\.weight has values that are not finite"),
}


@pytest.mark.parametrize(("spoil", "said"), BAD.values(), ids=BAD.keys())
async def test_bad_checkpoints(spoil: Callable[[Path], object], said: str, policy: VllmPolicy, other: Path) -> None:
    spoil(other)
    assert re.search(said, await refusal(policy, other))


async def test_the_weights_in_use_are_no_news(policy: VllmPolicy, model_directory: Path, tmp_path: Path) -> None:
    from bon_server.models.vllm.successor import start_successor

    copy = Path(shutil.copytree(model_directory, tmp_path / "copy"))
    assert await start_successor(PolicyConfig(), policy, copy) is None


async def test_an_engine_that_computes_something_else_is_found_out(
    policy: VllmPolicy, model_directory: Path, other: Path
) -> None:
    """The engine in use against its own weights, and against other ones: as if it had kept the old."""
    from bon_server.models.vllm.successor import compare

    token_ids = tuple(range(60, 80))
    own = await in_child_async(expected_logprobs, model_directory, token_ids)
    await compare(policy, "float32", token_ids, own)
    with pytest.raises(StartupError, match="does not compute what the weights say"):
        await compare(policy, "float32", token_ids, await in_child_async(expected_logprobs, other, token_ids))
    with pytest.raises(StartupError, match="differ by nan"):
        await compare(policy, "float32", token_ids, own * float("nan"))


async def test_giving_up_the_test_ends_its_process(other: Path) -> None:
    earlier = set(multiprocessing.active_children())
    testing = asyncio.create_task(in_child_async(expected_logprobs, other, (5, 6, 7)))
    await until(lambda: bool(set(multiprocessing.active_children()) - earlier))
    testing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await testing
    await until(lambda: not set(multiprocessing.active_children()) - earlier)


# A whole server, tied embeddings, and callers that never pause


@pytest_asyncio.fixture(loop_scope="session")
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Serves `tmp_path / "first"` and watches `tmp_path / "watched"`."""
    first = tiny_models.save_policy(tmp_path / "first", tie_word_embeddings=True)
    (tmp_path / "watched").mkdir()
    settings = {
        "policy.model": str(first),
        "policy.dtype": "float32",
        "policy.kv_cache_memory_bytes": KV_CACHE_BYTES,
        "policy.watch": str(tmp_path / "watched"),
        "policy.watch_poll_s": 0.2,
    }
    server = await Server.start(synthetic_config(tmp_path / "log", **settings))
    yield server
    await server.drain(0)
    await server.stop()


async def test_every_candidate_comes_from_the_weights_it_names(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad checkpoint, a good one and an adapter, while three callers ask one question after the other."""
    caplog.set_level(logging.INFO)
    bad = tiny_models.save_policy(tmp_path / "bad", weights_seed=2, tie_word_embeddings=True)
    cut(bad)
    second = tiny_models.save_policy(tmp_path / "second", weights_seed=1, tie_word_embeddings=True)
    third = tiny_models.save_adapter(tmp_path / "third", tmp_path / "first")
    models = {server.policy.ref.revision: plain(tmp_path / "first")}
    done = asyncio.Event()
    async with grpc.aio.insecure_channel(server.address) as channel:
        answers: list[pb.GenerateResponse] = []
        callers = [asyncio.create_task(ask_until(done, channel, f"c{number}", answers)) for number in range(3)]
        bad.rename(tmp_path / "watched" / "bad")
        await until_logged(caplog, "is damaged")
        assert server.policy.ref.revision in models
        for number, (checkpoint, model) in enumerate(((second, plain(second)), (third, adapted(third, tmp_path)))):
            checkpoint.rename(tmp_path / "watched" / checkpoint.name)
            await until_logged(caplog, "replaces", number + 1)
            models[server.policy.ref.revision] = model
            await until(lambda: len(server.policies._open) == 1, LONGEST_S)
            await until(lambda: answers[-1].policy.revision == server.policy.ref.revision, LONGEST_S)
        done.set()
        await asyncio.gather(*callers)
    assert caplog.text.count("is refused") == 1
    assert {answer.policy.revision for answer in answers} == set(models) and len(models) == 3
    with LogReader(tmp_path / "log") as reader:
        records = list(reader.records())
    assert len(records) == len(answers) and all(record.outcome == "ok" for record in records)
    for record in records[:: max(1, len(records) // 60)]:
        assert record.policy is not None and record.prompt_token_ids is not None
        for candidate in record.candidates:
            assert candidate.policy_revision == record.policy.revision
            for revision, model in models.items():
                expected = logprob(model, record.prompt_token_ids, candidate.token_ids)
                own = revision == candidate.policy_revision
                assert (candidate.logprob == pytest.approx(expected, abs=1e-3)) == own


def plain(directory: Path) -> Any:
    """A model in transformers."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def adapted(adapter: Path, folder: Path) -> Any:
    """An adapter on the first weights, by peft."""
    return PeftModel.from_pretrained(plain(folder / "first"), str(adapter)).eval()


async def ask_until(
    done: asyncio.Event, channel: grpc.aio.Channel, caller: str, answers: list[pb.GenerateResponse]
) -> None:
    """One question after the other."""
    stub = BestOfNServiceStub(channel)
    while not done.is_set():
        question = pb.GenerateRequest(
            request_id=f"{caller}-{len(answers)}",
            text=f"{caller} asks {len(answers)}",
            n=4,
            sampling=pb.SamplingParams(temperature=1.0, max_tokens=24),
        )
        answers.append(await stub.Generate(question, timeout=LONGEST_S))
        await asyncio.sleep(0.2)  # an engine that starts needs the cores too


async def until_logged(caplog: pytest.LogCaptureFixture, words: str, times: int = 1) -> None:
    async with asyncio.timeout(LONGEST_S):
        while caplog.text.count(words) < times:  # noqa: ASYNC110 -- seldom: the engines need the cores
            await asyncio.sleep(0.1)


def logprob(model: Any, prompt: Sequence[int], sampled: Sequence[int]) -> float:
    """Sum over the sampled tokens at temperature 1, in nats."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0, len(prompt) - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(sampled)[:, None]).sum())
