"""Lines of a harvest to requests: no I/O but a scratch database, no gRPC.

A line is `{"prompt": str or messages, "reward_context"?: {…}, "tags"?: {…}, "id"?: str}`, by these names or by those
that `Columns` gives; other keys are left alone. With an `id` the request has exactly that id. Without one it gets a
digest of prompt, reward context and tags, of its occurrence among equal ones, and of what the run asks for: the same
command run again asks for the same records, another run for new ones. Nulls and empty objects count as missing, so that
a row has one id, whether it comes as JSON or from a table.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

from bon.requests import GenerateOptions, Prompt, Text, generate_request
from bon.v1 import bon_pb2 as pb

from bon_server.loop.harvest.prompts import BadPromptLine as BadPromptLine
from bon_server.loop.harvest.prompts import Columns

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Run:
    """What every line of a run is asked for."""

    options: GenerateOptions
    """All but the prompt and what a line says itself; a tag of a line goes before one of the run."""
    raw: bool = False
    """String prompts are texts to be continued, not user messages of a chat."""
    system: str | None = None
    """Put before every prompt as the system message of its chat; not with `raw`."""
    columns: Columns = field(default_factory=Columns)
    """Where a row has its prompt and the rest."""
    trial: bool = False
    """Ask under fresh ids, and have nothing logged."""


class Occurrences:
    """How often each line has been seen: exact, and on disk, since a file may have more lines than memory."""

    def __init__(self) -> None:
        self._seen = sqlite3.connect("")  # an empty name is a private temporary database
        self._seen.execute("CREATE TABLE seen (line BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")

    def close(self) -> None:
        """Drops the counts."""
        self._seen.close()

    def count(self, line: bytes) -> int:
        """How many equal lines came before this one, which counts from now on."""
        row = self._seen.execute(
            "INSERT INTO seen VALUES (?, 0) ON CONFLICT (line) DO UPDATE SET times = times + 1 RETURNING times",
            (hashlib.sha256(line).digest()[:16],),
        ).fetchone()
        return int(row[0])


def line_request(
    content: bytes | Mapping[str, Any] | BadPromptLine, run: Run, occurrences: Occurrences
) -> pb.GenerateRequest:
    """The request of one line. Raises `BadPromptLine`."""
    parts = line_parts(content, run.columns)
    labels = {name: _labels(parts, name) for name in ("reward_context", "tags")}
    prompt = _prompt(parts, run)
    own = labels | {
        "tags": dict(run.options.get("tags") or {}) | labels["tags"],
        "request_id": _id(parts, run, occurrences),
    }
    if run.trial:
        own |= {"request_id": f"trial-{uuid4().hex}", "log_policy": "none"}
    try:
        return generate_request(prompt, **run.options | cast(GenerateOptions, own))
    except UnicodeEncodeError as lone_surrogate:
        raise BadPromptLine("the line holds text that is not Unicode (a lone surrogate)") from lone_surrogate


def line_parts(content: bytes | Mapping[str, Any] | BadPromptLine, columns: Columns) -> dict[str, Any]:
    """What a line says, by part (`columns.PARTS`), the prompt as it is there. Raises `BadPromptLine`."""
    if isinstance(content, BadPromptLine):
        raise content
    return columns.take(_fields(content) if isinstance(content, bytes) else content)


def _id(parts: Mapping[str, Any], run: Run, occurrences: Occurrences) -> str:
    given = parts.get("id")
    if given is None:
        return _derived_id(parts, run, occurrences)
    if not isinstance(given, str) or not _REQUEST_ID.fullmatch(given):
        raise BadPromptLine(f"id: allowed are 1 to 128 characters of [A-Za-z0-9._:-], given {_kind(given)}")
    return given


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadPromptLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadPromptLine("not UTF-8") from error
    except (RecursionError, ValueError) as error:
        raise BadPromptLine("not JSON: nested too deeply, or a number too long") from error
    if not isinstance(fields, dict):
        raise BadPromptLine(f"a line is an object with a prompt, given {_kind(fields)}")
    return fields


def _prompt(parts: Mapping[str, Any], run: Run) -> Prompt:
    prompt = parts.get("prompt")
    if isinstance(prompt, str):
        if run.raw:
            return Text(prompt)
        return prompt if run.system is None else [_system(run.system), {"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not all(_is_message(message) for message in prompt):
        raise BadPromptLine(
            f"prompt: allowed are a string or a list of {{role, content}} messages, given {_kind(prompt)}"
        )
    if run.system is None:
        return cast(Sequence[Mapping[str, str]], prompt)
    if any(message["role"] == "system" for message in prompt):
        raise BadPromptLine("prompt: it has a system message of its own, and the run gives one")
    return [_system(run.system), *prompt]


def _system(text: str) -> Mapping[str, str]:
    return {"role": "system", "content": text}


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in message.values())
    )


def _labels(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    labels = fields.get(name)
    if labels is None:
        return {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise BadPromptLine(f"{name}: an object of strings is allowed, given {_kind(labels)}")
    return labels


def _derived_id(parts: Mapping[str, Any], run: Run, occurrences: Occurrences) -> str:
    """`harvest-` and 128 bits. Equal parts give an equal id, however they are spelled."""
    line = _canonical({name: value for name, value in parts.items() if value})
    options = {name: value for name, value in run.options.items() if value is not None}
    asked: dict[str, Any] = {"options": options, "raw": run.raw, "occurrence": occurrences.count(line)}
    if run.system is not None:
        asked["system"] = run.system
    return "harvest-" + hashlib.sha256(_canonical(asked) + b"\n" + line).hexdigest()[:32]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _kind(value: object) -> str:
    """What a value is, without what it says."""
    names = {type(None): "nothing", str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), "a number")
