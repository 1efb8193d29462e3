"""The small trained part of the demo reward model: low-rank updates of a frozen backbone, and a few whole tensors.

One safetensors file, float16, under 6 MB:

    <linear>.down   (rank, in)   and  <linear>.up (out, rank): the weight of <linear> becomes weight + up @ down
                                 (LoRA, Hu et al. 2021, eq. 3; the scale is folded into `up`)
    <parameter>                  replaces that parameter: layer norms, pooler, head
    embedding.rows (k,) int32    token ids, and
    embedding.values (k, hidden) the vectors that replace theirs: digits, numbers and signs
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

EMBEDDING = "bert.embeddings.word_embeddings"
WHOLE = ("LayerNorm", "pooler", "classifier")
"""Parameters trained whole: those with one of these in their name."""


class LowRank(nn.Module):
    """A trainable low-rank update of a weight: W -> W + scale * up @ down."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.down = nn.Parameter(torch.randn(rank, in_features) / in_features**0.5)
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


class ReplacedRows(nn.Module):
    """Trainable rows of an embedding table whose other rows stay as they are."""

    rows: Tensor

    def __init__(self, table: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.values = nn.Parameter(table[rows].clone())

    def forward(self, table: Tensor) -> Tensor:
        return table.index_copy(0, self.rows, self.values)


def make_trainable(model: PreTrainedModel, rank: int, scale: float, token_ids: list[int]) -> None:
    """Freezes the model but for low-rank updates of the encoder's linear layers, `token_ids`' embeddings and WHOLE."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in WHOLE))
    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not any(part in n for part in WHOLE)]
    for linear in linears:
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank, scale))
    table = model.get_submodule(EMBEDDING)
    rows = torch.tensor(sorted(token_ids))
    parametrize.register_parametrization(table, "weight", ReplacedRows(table.weight.detach(), rows))


def save_trained(model: PreTrainedModel, file: Path) -> None:
    """Writes the trained part of a model that `make_trainable` prepared."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "parametrizations" not in name:
            tensors[name] = parameter
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        update = module.parametrizations["weight"][0]
        if isinstance(update, LowRank):
            tensors[f"{name}.down"] = update.down
            tensors[f"{name}.up"] = update.up * update.scale
        elif isinstance(update, ReplacedRows):
            tensors["embedding.values"] = update.values
    halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}
    halves["embedding.rows"] = _rows(model).to(torch.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, file)


def merge_trained(model: PreTrainedModel, file: Path) -> None:
    """Merges the trained part in `file` into a plain model, in float32.

    Raises:
        KeyError, RuntimeError: `file` was trained on another backbone.
    """
    tensors = {name: t if t.dtype == torch.int32 else t.float() for name, t in load_file(file).items()}
    state = dict(model.named_parameters())
    with torch.no_grad():
        rows, values = tensors.pop("embedding.rows"), tensors.pop("embedding.values")
        state[f"{EMBEDDING}.weight"][rows.long()] = values
        for name, tensor in tensors.items():
            if name.endswith(".up"):
                state[name.removesuffix(".up") + ".weight"] += tensor @ tensors[name.removesuffix(".up") + ".down"]
            elif not name.endswith(".down"):
                state[name].copy_(tensor)


def _rows(model: PreTrainedModel) -> Tensor:
    update = model.get_submodule(EMBEDDING).parametrizations["weight"][0]
    assert isinstance(update, ReplacedRows)
    return update.rows
