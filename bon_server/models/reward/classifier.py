"""A transformers sequence classifier with one label: loading it safely, and rewards of batches that do not depend on
what else is in the batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import StartupError
from bon_server.models.reward.pairs import PairTokenizer, TokenPair
from bon_server.models.reward.prompt_states import PromptStates, padded
from bon_server.models.tokenizer import load_tokenizer
from bon_server.models.weights import ModelFiles, find_model

logger = logging.getLogger(__name__)

LEAST_SHARED_TOKENS = 16
"""A shorter prompt is not worth a forward pass of its own."""
SAME_REWARD = 5e-3
"""Relative difference between a reward with a shared prompt and one without, at most; half precision has the most."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Classifier:
    """A loaded model with its tokenizer. Not for use by two threads at a time."""

    def __init__(self, files: ModelFiles, model: Any, tokenizer: Any, max_model_len: int | None = None) -> None:
        self.files = files
        self._model = model
        self._tokenizer = tokenizer
        self._decoder = is_decoder(model.config)
        self.tokenize = PairTokenizer(tokenizer, self._decoder)
        self.vocabulary_size: int = model.get_input_embeddings().num_embeddings
        own_tokens = _max_model_len(files, model, tokenizer)
        self.max_model_len = min(own_tokens, max_model_len or own_tokens)
        self._states: PromptStates | None = None
        if self._decoder and not tokenizer.chat_template:
            raise StartupError(f"reward model {files.id}: its tokenizer has no chat template to render prompts with")
        if not self._decoder and tokenizer.pad_token_id is None:
            raise StartupError(f"reward model {files.id}: its tokenizer has no padding token")

    @classmethod
    def load(cls, model: str, config: RewardConfig) -> Classifier:
        """Blocks for seconds. Raises StartupError."""
        files = find_model(model, config.revision)
        tokenizer = load_tokenizer(files.directory)
        classifier = cls(files, _load_model(files, config), tokenizer, config.max_model_len)
        classifier._try_out()
        if classifier._decoder and _wants_shared_prompts(config, classifier._model):
            classifier._share_prompts()
        return classifier

    def _try_out(self) -> None:
        """The first forward pass is slow; and one that fails must fail here."""
        try:
            self.rewards([TokenPair([0, 1], None), TokenPair([0], None)])
        except Exception as error:  # whatever torch raises
            kind = type(error).__name__
            raise StartupError(f"reward model {self.files.id}: its first forward pass failed ({kind})") from error

    def _share_prompts(self) -> None:
        """From now on prompts run once, if that gives the rewards it must: not every architecture keeps states so."""
        prompt = [token_id % self.vocabulary_size for token_id in range(1, 2 * LEAST_SHARED_TOKENS)]
        shorter = prompt[3:]
        pairs = [TokenPair([*each, *rest], None, len(each)) for each in (prompt, shorter) for rest in ([1], [2, 3, 4])]
        apart = self._one_batch(pairs)
        self._states = PromptStates(self._model)
        try:
            together = self._forward(pairs)
        except Exception as error:  # noqa: BLE001 - whatever torch and transformers raise
            logger.info("prompts are not shared: %s", type(error).__name__)
            self._states = None
            return
        scale = max(map(abs, apart)) + 1
        if max(abs(one - other) for one, other in zip(apart, together, strict=True)) > SAME_REWARD * scale:
            logger.info("prompts are not shared: the rewards would change")
            self._states = None

    @property
    def facts(self) -> Mapping[str, str | int]:
        """What the start-up banner says of the model."""
        weight = next(self._model.parameters())
        return {
            "device": str(weight.device),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "weights_bytes": sum(each.numel() * each.element_size() for each in self._model.parameters()),
            "kind": "decoder" if self._decoder else "encoder",
            "max_model_len": self.max_model_len,
            "prompts": "computed once" if self._states is not None else "computed with each completion",
        }

    @property
    def on_cpu(self) -> bool:
        """Whether it computes where the rest of the server does."""
        return bool(self._model.device.type == "cpu")

    def device_works(self) -> bool:
        """Whether its device still computes. A GPU refuses everything after some errors, until the process is new.

        One that has no memory left for a number will have some again.
        """
        try:
            torch.ones(1, device=self._model.device).item()
        except Exception as error:  # noqa: BLE001 - whatever torch raises
            return is_out_of_memory(error)
        return True

    def rewards(self, pairs: Sequence[TokenPair]) -> list[float]:
        """Raw logits, one for each pair; on lack of memory tries again with halves. Raises what torch raises."""
        try:
            return self._forward(pairs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(pairs) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(pairs) // 2
        return self.rewards(pairs[:half]) + self.rewards(pairs[half:])

    def _forward(self, pairs: Sequence[TokenPair]) -> list[float]:
        """Those whose prompts are kept in one pass, the others in another."""
        kept = [self._states is not None and pair.prompt_tokens >= LEAST_SHARED_TOKENS for pair in pairs]
        after_prompts = iter(self._after_prompts([pair for pair, is_kept in zip(pairs, kept, strict=True) if is_kept]))
        whole = iter(self._one_batch([pair for pair, is_kept in zip(pairs, kept, strict=True) if not is_kept]))
        return [next(after_prompts if is_kept else whole) for is_kept in kept]

    def _after_prompts(self, pairs: Sequence[TokenPair]) -> list[float]:
        if not pairs:
            return []
        assert self._states is not None
        prompts = [pair.ids[: pair.prompt_tokens] for pair in pairs]
        continuations = [pair.ids[pair.prompt_tokens :] for pair in pairs]
        with torch.inference_mode():
            logits = self._states.logits(prompts, continuations, self._free_id(pairs))
        rewards: list[float] = logits[:, 0].float().tolist()
        return rewards

    def _one_batch(self, pairs: Sequence[TokenPair]) -> list[float]:
        if not pairs:
            return []
        pad_id = self._free_id(pairs) if self._decoder else self._tokenizer.pad_token_id
        longest = max(len(pair.ids) for pair in pairs)
        inputs = {
            "input_ids": padded([pair.ids for pair in pairs], longest, pad_id),
            "attention_mask": padded([[1] * len(pair.ids) for pair in pairs], longest, 0),
        }
        type_ids = [pair.type_ids for pair in pairs if pair.type_ids is not None]
        if type_ids:
            inputs["token_type_ids"] = padded(type_ids, longest, 0)
        with torch.inference_mode():
            logits = self._model(**{name: rows.to(self._model.device) for name, rows in inputs.items()}).logits
            rewards: list[float] = logits[:, 0].float().tolist()
        return rewards

    def _free_id(self, pairs: Sequence[TokenPair]) -> int:
        """Pads with a token that no sequence of this batch has, and tells the model so.

        Decoders take their score at the last token that is not padding. Where the padding token also ends turns (as in
        SmolLM2) they would take it one token early: -12.31 instead of 1.78.
        """
        used = set().union(*(pair.ids for pair in pairs))
        free = next(token_id for token_id in range(self.vocabulary_size) if token_id not in used)
        self._model.config.pad_token_id = free
        self._model.config.get_text_config().pad_token_id = free
        return free


def _wants_shared_prompts(config: RewardConfig, model: Any) -> bool:
    if getattr(model.config.get_text_config(), "sliding_window", None) is not None:
        return False  # what is kept of a long prompt depends on what follows it; a short trial would not show it
    device = model.device
    return device.type == "cpu" if config.share_prompts is None else config.share_prompts


def is_decoder(config: Any) -> bool:
    """Whether models of this kind generate text left to right (and are not also masked language models)."""
    generative, masked = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_MASKED_LM_MAPPING
    return type(config) in generative and type(config) not in masked


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception for it, the CPU allocator only a message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)


def _load_model(files: ModelFiles, config: RewardConfig) -> Any:
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        labels = transformers.AutoConfig.from_pretrained(files.directory, **options).num_labels
        if labels != 1:
            raise StartupError(f"reward model {files.id}: it has {labels} labels; a reward model has exactly 1")
        model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            files.directory, dtype=_dtype(config), use_safetensors=True, output_loading_info=True, **options
        )
        model = model.eval().to(_device(config))
    except StartupError:
        raise
    except Exception as error:  # whatever the libraries raise, the model is not usable
        kind = " ".join(str(error).split())[:200] or type(error).__name__
        raise StartupError(f"reward model {files.id}: it cannot be loaded: {kind}") from error
    absent = sorted({*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])})
    if absent:
        raise StartupError(f"reward model {files.id}: weights are missing, so they would be random: {absent[0]}")
    return model


def _dtype(config: RewardConfig) -> torch.dtype:
    if config.dtype not in DTYPES:
        raise StartupError(f"reward.dtype {config.dtype!r}: allowed are {', '.join(DTYPES)}")
    return DTYPES[config.dtype]


def _device(config: RewardConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.version.cuda is not None:
        logger.warning("torch was built for CUDA but finds no GPU that it can use: scoring on the CPU")
    return torch.device("cpu")


def _max_model_len(files: ModelFiles, model: Any, tokenizer: Any) -> int:
    """The least of what the model, its table of positions and its tokenizer allow."""
    limits = [int(tokenizer.model_max_length), getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # Models of the RoBERTa family begin to count after the padding index.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    context = min(limit for limit in limits if limit is not None and limit > 0)
    if context > 10**9:  # what transformers says when it does not know
        raise StartupError(f"reward model {files.id}: neither model nor tokenizer says how long its inputs may be")
    return int(context)
