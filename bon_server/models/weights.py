"""The files of a model: where they are, which revision they are, and whether they are safe to load.

Policies and reward models are loaded from the directory that `find_model` returns, so the libraries that load them
fetch nothing and touch no code and no pickle. Everything wrong is a `StartupError` of one sentence.

`check_shapes` compares the weights with the configuration they come with. vLLM cuts a tensor that is larger than the
configuration says to size (as it does to split it over GPUs) and serves nonsense; so what disagrees is refused first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bon_server.core.errors import StartupError

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is fetched from the hub: no pickles, no code."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LONGEST_HEADER_BYTES = 100_000_000
"""The safetensors format allows no longer header."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory that was looked at."""

    id: str
    """The directory's name, or the hub id."""
    directory: Path
    revision: str
    """Hex SHA-256 of the weight files (see `weights_digest`), or the commit on the hub."""
    weights_bytes: int
    config: Mapping[str, Any]
    """The parsed `config.json`."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor in the weight files, by name."""
    formats: Mapping[str, str]
    """Number format of each, as safetensors names it: `F32`, `BF16` and so on."""


def find_model(model: str, revision: str | None = None) -> ModelFiles:
    """Looks at a model directory, or fetches a hub id into the local cache and looks at that.

    `revision`: branch, tag or commit on the hub; for a directory, the digest that its weights must have.

    Raises StartupError: not there, no readable configuration, weights that are missing, damaged or pickled, or a model
    that wants to bring its own code.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return _look_at(directory.resolve(), directory.resolve().name, revision)
    if not may_be_hub_id(model):
        raise StartupError(f"model {model}: no such directory, and not a hub id of the form owner/name")
    snapshot = _fetch(model, revision)
    files = _look_at(snapshot, model, None)
    return replace(files, revision=snapshot.name)


def may_be_hub_id(model: str) -> bool:
    """Whether it has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and not model.startswith(".")


def _look_at(directory: Path, model_id: str, revision: str | None) -> ModelFiles:
    config = _read_json(directory / "config.json")
    _refuse_code(directory, config)
    weights = _weight_files(directory)
    tensors = {name: tensor for path in weights for name, tensor in _read_header(path).items()}
    found = weights_digest(weights)
    if revision is not None and revision != found:
        raise StartupError(f"model {directory}: its weights have the revision {found}, not {revision}")
    weights_bytes = sum(path.stat().st_size for path in weights)
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    formats = {name: number_format for name, (_, number_format) in tensors.items()}
    return ModelFiles(model_id, directory, found, weights_bytes, config, shapes, formats)


def _fetch(model: str, revision: str | None) -> Path:
    """Returns the snapshot folder in the hub's cache; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise StartupError(
            f"model {model}: no such directory, and the hub did not give it ({type(error).__name__})"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StartupError(f"model {path.parent}: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"model {path.parent}: {path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise StartupError(f"model {path.parent}: {path.name} holds no JSON object")
    return document


def _refuse_code(directory: Path, config: Mapping[str, Any]) -> None:
    """Code of a model is never run, so a model that asks for it would not be the model its authors meant."""
    tokenizer_config = directory / "tokenizer_config.json"
    for name, document in (
        ("config.json", config),
        (tokenizer_config.name, _read_json(tokenizer_config) if tokenizer_config.exists() else {}),
    ):
        if "auto_map" in document:
            raise StartupError(
                f"model {directory}: it brings its own code (auto_map in {name}), which is never run here; if the "
                "installed libraries know this kind of model, remove that entry"
            )


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise StartupError(f"model {directory}: {index.name} names no weight files")
        weights = [directory / name for name in sorted(set(shards.values()))]
    else:
        weights = sorted(directory.glob("*.safetensors"))
    for path in weights:
        if not path.is_file():
            raise StartupError(f"model {directory}: the weight file {path.name} is missing")
    if weights:
        return weights
    pickled = sorted(path.name for pattern in PICKLED for path in directory.glob(pattern))
    if pickled:
        raise StartupError(
            f"model {directory}: its weights are pickled ({pickled[0]}) and could run code; convert them to safetensors"
        )
    raise StartupError(f"model {directory}: it has no weights (*.safetensors)")


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number format of each tensor of a safetensors file.

    Compares the file's size with what its header says: finds cut and foreign files.
    """
    size_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > min(size_bytes, LONGEST_HEADER_BYTES):
                raise ValueError
            header = json.loads(file.read(header_bytes))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        if 8 + header_bytes + max(tensor["data_offsets"][1] for tensor in tensors.values()) != size_bytes:
            raise ValueError
        return {name: (tuple(tensor["shape"]), str(tensor["dtype"])) for name, tensor in tensors.items()}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StartupError(f"model {path.parent}: the weight file {path.name} is damaged") from error


def weights_digest(weights: list[Path]) -> str:
    """Hex SHA-256 over the files' names and contents: what `sha256sum *.safetensors | sha256sum` prints."""
    lines = [f"{_file_digest(path)}  {path.name}\n" for path in sorted(weights)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Hex SHA-256 of a file, remembered for as long as its place, size and times stay the same."""
    status = path.stat()
    identity = (
        str(path.resolve()),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    cached = _cache_folder() / hashlib.sha256(repr(identity).encode()).hexdigest()
    with suppress(OSError):
        known = cached.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # only a cache: without it the next start reads the weights again
        _write_whole(cached, digest)
    return digest


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bon" / "digests"


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def check_shapes(files: ModelFiles, head: str = "CausalLM") -> None:
    """Compares the tensors that both sides know by the same name; others are left to vLLM, as are quantised models.

    Takes no memory for weights. Raises StartupError.
    """
    if "quantization_config" in files.config:
        return
    for name, expected in expected_shapes(files, head).items():
        found = files.shapes.get(name, expected)
        if found != expected:
            raise StartupError(
                f"model {files.directory}: the weight {name} has the shape {list(found)}, "
                f"but by config.json it has {list(expected)}"
            )


def expected_shapes(files: ModelFiles, head: str) -> dict[str, tuple[int, ...]]:
    """Of the weights by name, from config.json. head: `CausalLM` or `SequenceClassification`.

    By transformers, which does not know all kinds of models that vLLM does: then there is nothing to compare.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            files.directory, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model = getattr(transformers, f"AutoModelFor{head}").from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError):
        return {}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
