"""`policy.dtype = auto` on a machine with and without bfloat16 instructions."""

import platform

import pytest
import torch

from bon_server.models.dtype import dtype_for


def on_machine(monkeypatch: pytest.MonkeyPatch, architecture: str, **capabilities: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


def test_auto_is_float32_where_bfloat16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, "x86_64", avx2=True, avx512_bf16=False, amx_bf16=False)
    assert dtype_for("auto", on_cpu=True) == "float32"
    assert dtype_for("auto", on_cpu=False) == "auto"
    assert dtype_for("bfloat16", on_cpu=True) == "bfloat16"


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16"])
def test_auto_is_the_models_own_where_there_are_instructions(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, "x86_64", **{instruction: True})
    assert dtype_for("auto", on_cpu=True) == "auto"


def test_auto_is_the_models_own_on_other_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, "aarch64")
    assert dtype_for("auto", on_cpu=True) == "auto"
