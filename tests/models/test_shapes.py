"""Weights that disagree with their configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import StartupError
from bon_server.models.weights import check_shapes, find_model


@pytest.fixture
def copied(model_directory: Path, tmp_path: Path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


def check_with(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    check_shapes(find_model(str(directory)))


def test_weights_that_agree(copied: Path) -> None:
    check_with(copied)


@pytest.mark.parametrize("change", [{"intermediate_size": 96}, {"vocab_size": 200}, {"num_key_value_heads": 2}])
def test_weights_of_another_shape(change: dict[str, int], copied: Path) -> None:
    with pytest.raises(StartupError, match=r"the weight model.* has the shape \[\d+, \d+\], but by config.json"):
        check_with(copied, **change)


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 3}, {"model_type": "nobody-knows"}, {"quantization_config": {}, "vocab_size": 200}]
)
def test_what_is_left_to_the_engine(change: dict[str, Any], copied: Path) -> None:
    check_with(copied, **change)
