"""Which number format `policy.dtype = auto` means on this machine."""

from __future__ import annotations

import platform

import torch

X86 = ("x86_64", "AMD64")


def dtype_for(asked: str, on_cpu: bool) -> str:
    """The format to give to vLLM: as asked, but float32 for `auto` on a CPU that has no bfloat16 instructions.

    Such a CPU converts every bfloat16 number in software: on two AVX2 cores torch's matrix products reach 17 to 20
    GFLOPS in bfloat16 and 88 to 141 in float32. The weights then take twice the memory.
    """
    if asked == "auto" and on_cpu and platform.machine() in X86 and not _has_bfloat16():
        return "float32"
    return asked


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
