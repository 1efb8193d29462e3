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

from bon_server.config import LogConfig
from bon_server.errors import ConfigError, InternalError, StartupError, UnsupportedOption
from bon_server.log.record import Record, prompt_hash
from bon_server.specs import import_module
from bon_server.types import Candidate, LogPolicy, Message, Request, Sampling

Result = TypeVar("Result")
Redact = Callable[[str], str]
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


def load_redact(spec: str | None) -> Redact | None:
    """The function `module:function`. Raises `ConfigError` and `StartupError`: no such function, or not of one text."""
    if spec is None:
        return None
    module_name, separator, name = spec.partition(":")
    if not (module_name and separator and name) or ":" in name:
        raise ConfigError(f"log.redact = {spec!r}: expected module:function")
    function = getattr(import_module(f"log.redact {spec!r}", module_name), name, None)
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise StartupError(f"log.redact {spec!r}: {name!r} is not a plain function of {module_name}")
    try:
        inspect.signature(function).bind("")
    except (TypeError, ValueError) as error:
        raise StartupError(f"log.redact {spec!r}: it must take one text") from error
    redact: Redact = function
    return redact


async def to_log(record: Record, request: Request, redact: Redact | None) -> Record | None:
    """The record as the log may have it; None: not at all. Raises `InternalError` when the redaction fails."""
    if request.log_policy is LogPolicy.NONE:
        return None
    if request.log_policy is LogPolicy.METADATA_ONLY:
        record = without_content(record)
    if redact is None:
        return record
    return await redacting(redact, lambda clean: _redacted(record, request.reward_prompt.text, clean))


async def redacting(redact: Redact, change: Callable[[Redact], Result]) -> Result:
    """As `redacting_now`, in a thread."""
    return await asyncio.to_thread(redacting_now, redact, change)


def redacting_now(redact: Redact, change: Callable[[Redact], Result]) -> Result:
    """Runs `change` with a function that redacts a text. Raises `InternalError` when that fails."""
    try:
        return change(_checked(redact))
    except (Exception, SystemExit) as error:  # the operator's code; a StopIteration could not leave a thread
        raise InternalError("the redaction failed") from error


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


def _checked(redact: Redact) -> Redact:
    """Asks once for each text, since candidates are often equal, and not for empty ones."""
    known = {"": ""}

    def clean(text: str) -> str:
        if text not in known:
            redacted = redact(text)
            if not isinstance(redacted, str):
                raise TypeError("the redaction gave no text")
            known[text] = redacted
        return known[text]

    return clean


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
