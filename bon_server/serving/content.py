"""What of a request reaches the log: all of it, figures alone, or nothing; and the operator's redaction before that.

    METADATA_ONLY   no prompt, completion, token, reward context or constraint; and no digest that a short one could be
                    guessed from: `request_digest` is empty, `prompt_hash` is that of the request id
    NONE            no record
    log.redact      each text passes through `module:function`, which gives the text to log

The answer is not affected. What the log does not hold as it was cannot be replayed, so the request id is used up.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from msgspec import structs

from bon_server.config.settings import LogConfig
from bon_server.config.specs import import_module
from bon_server.core.errors import ConfigError, InternalError, StartupError, UnsupportedOption
from bon_server.core.types import Candidate, LogPolicy, Message, Request, Sampling
from bon_server.log.record import Record, prompt_hash
from bon_server.operator_code.messages import Setup
from bon_server.operator_code.pool import WorkerPool, default_processes
from bon_server.operator_code.worker import is_async

Result = TypeVar("Result")
Redact = Callable[[str], str]
REDACT_PROCESSES = 2
"""Processes that redact, where there are so many CPUs."""
REMEMBERED_IDS = 1 << 16


class UsedIds:
    """The latest request ids, by caller, that were answered without a record. In memory, so a restart forgets them."""

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[str, str], None] = OrderedDict()

    def add(self, key: tuple[str, str]) -> None:
        """Remembers an id and forgets the oldest one when there are too many."""
        self._ids[key] = None
        if len(self._ids) > REMEMBERED_IDS:
            self._ids.popitem(last=False)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._ids


def refuse_forbidden(log_policy: LogPolicy, config: LogConfig) -> None:
    """Raises `UnsupportedOption` for a policy that the operator forbids."""
    allowed = {
        LogPolicy.FULL: True,
        LogPolicy.METADATA_ONLY: config.allow_metadata_only,
        LogPolicy.NONE: config.allow_none,
    }
    if not allowed[log_policy]:
        raise UnsupportedOption(
            f"log_policy: {log_policy.name} is forbidden by this server's operator (log.allow_{log_policy} = false)"
        )


class Redaction:
    """The operator's function, which gives the text to log for a text. It runs in processes that can be killed."""

    def __init__(self, setup: Setup) -> None:
        self._pool = WorkerPool(setup, min(REDACT_PROCESSES, default_processes()), is_async=False)

    @property
    def failure(self) -> str | None:
        """Why nothing can be redacted any more; None: it can."""
        return self._pool.failure

    async def start(self) -> None:
        """Starts the processes. Raises StartupError when the function cannot be loaded in them."""
        await self._pool.start()

    async def close(self) -> None:
        """Kills the processes, whatever they are at."""
        await self._pool.close()

    async def apply(self, change: Callable[[Redact], Result]) -> Result:
        """Runs `change` with a function that redacts a text. Raises `InternalError` when a text cannot be redacted.

        `change` runs twice, in a thread: the first time to see which texts it asks about. Each is redacted once, since
        candidates are often equal, and empty ones are not.
        """
        texts: dict[str, None] = {}

        def collect(text: str) -> str:
            if text:
                texts[text] = None
            return text

        await asyncio.to_thread(change, collect)
        redacted = {"": "", **await self._redact(tuple(texts))}
        return await asyncio.to_thread(change, redacted.__getitem__)

    async def _redact(self, texts: tuple[str, ...]) -> dict[str, str]:
        calls = [self._pool.call((text,)) for text in texts]
        try:
            for coming in asyncio.as_completed(calls):
                answer = await coming
                if answer.error is not None:
                    where = f" at {answer.place}" if answer.place else ""
                    raise InternalError(f"the redaction failed: {answer.error}{where}")
        finally:
            for call in calls:
                call.cancel()
        return {text: str(call.result().value) for text, call in zip(texts, calls, strict=True)}


def load_redact(spec: str | None, timeout_s: float = LogConfig.redact_timeout_s) -> Redaction | None:
    """The function `module:function`; timeout_s: for one text. Starts no process yet.

    Raises `ConfigError` and `StartupError`: no such function, or not of one text.
    """
    if spec is None:
        return None
    module_name, separator, name = spec.partition(":")
    if not (module_name and separator and name) or ":" in name:
        raise ConfigError(f"log.redact = {spec!r}: expected module:function")
    what = f"log.redact {spec!r}"
    function = getattr(import_module(what, module_name), name, None)
    if not callable(function) or is_async(function):
        raise StartupError(f"{what}: {name!r} is not a plain function of {module_name}")
    try:
        inspect.signature(function).bind("")
    except (TypeError, ValueError) as error:
        raise StartupError(f"{what}: it must take one text") from error
    return Redaction(Setup(what, module_name, name, "text", timeout_s))


async def to_log(record: Record, request: Request, redaction: Redaction | None) -> Record | None:
    """The record as the log may have it; None: not at all. Raises `InternalError` when the redaction fails."""
    if request.log_policy is LogPolicy.NONE:
        return None
    if request.log_policy is LogPolicy.METADATA_ONLY:
        record = without_content(record)
    if redaction is None:
        return record
    return await redaction.apply(lambda clean: _redacted(record, request.reward_prompt.text, clean))


def without_content(record: Record) -> Record:
    """The record without anything that was said, and without digests of it."""
    identity = f"content not logged\0{record.principal}\0{record.request_id}"
    return replace(
        record,
        request_digest="",
        prompt_hash=hashlib.sha256(identity.encode()).hexdigest(),
        prompt_text=None,
        prompt_messages=None,
        prompt_token_ids=None,
        sampling=None if record.sampling is None else _without_texts(record.sampling),
        reward_context={},
        candidates=tuple(structs.replace(one, text="", token_ids=(), stop_reason=None) for one in record.candidates),
        content_logged=False,
    )


def _without_texts(sampling: Sampling) -> Sampling:
    return replace(sampling, stop=(), stop_token_ids=(), json_schema=None, regex=None, choice=None)


def _redacted(record: Record, decoded_prompt: str | None, clean: Redact) -> Record:
    """decoded_prompt: the text of a prompt that came as token ids."""
    cleaned = replace(record, tags=clean_values(record.tags, clean))
    if record.content_logged:
        cleaned = _clean_content(cleaned, decoded_prompt, clean)
    return record if cleaned == record else replace(cleaned, request_digest="")


def _clean_content(record: Record, decoded_prompt: str | None, clean: Redact) -> Record:
    cleaned = replace(
        record,
        reward_context=clean_values(record.reward_context, clean),
        sampling=None if record.sampling is None else _clean_sampling(record.sampling, clean),
        candidates=tuple(_clean_candidate(candidate, clean) for candidate in record.candidates),
    )
    return _clean_prompt(cleaned, decoded_prompt, clean)


def _clean_prompt(record: Record, decoded_prompt: str | None, clean: Redact) -> Record:
    """Token ids go when their text was changed; a prompt of token ids becomes the redacted text."""
    text, messages, token_ids = record.prompt_text, record.prompt_messages, record.prompt_token_ids
    if text is not None:
        text = clean(text)
    elif messages is not None:
        messages = tuple(Message(message.role, clean(message.content)) for message in messages)
    elif decoded_prompt is not None and clean(decoded_prompt) != decoded_prompt:
        text = clean(decoded_prompt)
    if (text, messages) != (record.prompt_text, record.prompt_messages):
        token_ids = None
    cleaned = replace(record, prompt_text=text, prompt_messages=messages, prompt_token_ids=token_ids)
    return replace(cleaned, prompt_hash=prompt_hash(cleaned.prompt, record.reward_context))


def _clean_candidate(candidate: Candidate, clean: Redact) -> Candidate:
    text = clean(candidate.text)
    stop_reason = None if candidate.stop_reason is None else clean(candidate.stop_reason)
    token_ids = candidate.token_ids if text == candidate.text else ()
    return structs.replace(candidate, text=text, token_ids=token_ids, stop_reason=stop_reason)


def _clean_sampling(sampling: Sampling, clean: Redact) -> Sampling:
    return replace(
        sampling,
        stop=tuple(map(clean, sampling.stop)),
        json_schema=None if sampling.json_schema is None else clean(sampling.json_schema),
        regex=None if sampling.regex is None else clean(sampling.regex),
        choice=None if sampling.choice is None else tuple(map(clean, sampling.choice)),
    )


def clean_values(texts: Mapping[str, str], clean: Redact) -> dict[str, str]:
    """The values redacted; keys are names."""
    return {name: clean(text) for name, text in texts.items()}
