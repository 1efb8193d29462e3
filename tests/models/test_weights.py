"""Looking at model files before anything loads them."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import StartupError
from bon_server.models.weights import find_model, weights_digest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bon" / "digests"


def write_weights(path: Path, data: bytes = b"\0" * 8) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that has all that is looked at."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    write_weights(directory / "model.safetensors")
    return directory


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(StartupError) as caught:
        find_model(str(model), **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_directory(model: Path) -> None:
    files = find_model(str(model))
    assert (files.id, files.directory, files.config) == ("model", model, {"model_type": "llama"})
    assert files.weights_bytes == (model / "model.safetensors").stat().st_size
    assert files.revision == weights_digest([model / "model.safetensors"])


def test_the_digest_is_what_two_shell_commands_print(model: Path) -> None:
    write_weights(model / "a.safetensors", b"12345678")
    command = "sha256sum *.safetensors | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=model, capture_output=True, text=True, check=True).stdout
    assert find_model(str(model)).revision == printed.split()[0]


def test_a_digest_is_remembered_until_the_file_changes(model: Path, cache: Path) -> None:
    first = find_model(str(model)).revision
    assert find_model(str(model)).revision == first
    assert len(list(cache.iterdir())) == 1
    weights, status = model / "model.safetensors", (model / "model.safetensors").stat()
    write_weights(weights, b"other by")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert find_model(str(model)).revision != first


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"0" * 64])
def test_a_damaged_memory_is_not_believed(damage: bytes, model: Path, cache: Path) -> None:
    first = find_model(str(model)).revision
    (remembered,) = cache.iterdir()
    remembered.write_bytes(damage)
    found = find_model(str(model)).revision
    assert (found == first) == (len(damage) != 64)


def test_no_place_to_remember_digests(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(find_model(str(model)).revision) == 64


def test_a_pinned_digest(model: Path) -> None:
    revision = find_model(str(model)).revision
    assert find_model(str(model), revision).revision == revision
    assert "not main" in refusal(model, revision="main")


@pytest.mark.parametrize("name", ["absent", "/no/such/place", "./a/b", "a/b/c", "", "..", "a b/c", "../x"])
def test_names_of_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "no such directory" in refusal(name) or "no config.json" in refusal(name)


def test_an_empty_directory(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff"])
def test_a_configuration_that_is_none(content: str, model: Path) -> None:
    (model / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_the_model(name: str, model: Path) -> None:
    (model / name).write_text('{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}')
    assert f"auto_map in {name}" in refusal(model)


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "no weights" in refusal(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights(name: str, model: Path) -> None:
    (model / "model.safetensors").rename(model / name)
    assert f"pickled ({name})" in refusal(model)


def test_pickles_beside_good_weights_are_left_alone(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert find_model(str(model)).weights_bytes > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"nul",
        struct.pack("<Q", 12) + b'{"w":{"a":1}}',
        random.Random(0).randbytes(64),
    ],
)
def test_weights_that_are_none(content: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged" in refusal(model)


@pytest.mark.parametrize("change_bytes", [-1, 1, -8])
def test_weights_cut_or_grown(change_bytes: int, model: Path) -> None:
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:change_bytes] if change_bytes < 0 else content + b"\0" * change_bytes)
    assert "damaged" in refusal(model)


def test_shards(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in refusal(model)
    write_weights(model / "model-00002-of-00002.safetensors")
    assert find_model(str(model)).weights_bytes > 0


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": {"w": "../outside.safetensors"}}'])
def test_an_index_of_nothing(index: str, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(index)
    assert "weight" in refusal(model)
