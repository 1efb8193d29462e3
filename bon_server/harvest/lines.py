"""Lines of a harvest file to requests: no I/O but a scratch database, no gRPC.

A line is `{"prompt": str or messages, "reward_context"?: {…}, "tags"?: {…}, "id"?: str}`; other keys are left alone.
With an `id` the request has exactly that id. Without one it gets a digest of the line, of its occurrence among equal
lines, and of what the run asks for: the same command run again asks for the same records, another run for new ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from bon.requests import GenerateOptions, Prompt, Text, generate_request
from bon.v1 import bon_pb2 as pb

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class BadLine(ValueError):
    """A line that is no request; the message says what is wrong, without its content."""


@dataclass(frozen=True, slots=True)
class Run:
    """What every line of a run is asked for."""

    options: GenerateOptions
    """All but the prompt and what a line says itself."""
    raw: bool = False
    """String prompts are texts to be continued, not user messages of a chat."""


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


def line_request(line: bytes, run: Run, occurrences: Occurrences) -> pb.GenerateRequest:
    """The request of one line. Raises `BadLine`."""
    fields = _fields(line)
    context, tags = _labels(fields, "reward_context"), _labels(fields, "tags")
    request_id = fields.get("id")
    if request_id is None:
        request_id = _derived_id(fields, run, occurrences)
    elif not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise BadLine(f"id: allowed are 1 to 128 characters of [A-Za-z0-9._:-], given {_kind(request_id)}")
    options = run.options | cast(GenerateOptions, {"request_id": request_id, "reward_context": context, "tags": tags})
    try:
        return generate_request(_prompt(fields, run.raw), **options)
    except UnicodeEncodeError as lone_surrogate:
        raise BadLine("the line holds text that is not Unicode (a lone surrogate)") from lone_surrogate


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8") from error
    except (RecursionError, ValueError) as error:
        raise BadLine("not JSON: nested too deeply, or a number too long") from error
    if not isinstance(fields, dict):
        raise BadLine(f"a line is an object with a prompt, given {_kind(fields)}")
    return fields


def _prompt(fields: Mapping[str, Any], raw: bool) -> Prompt:
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return Text(prompt) if raw else prompt
    if not isinstance(prompt, list) or not all(_is_message(message) for message in prompt):
        raise BadLine(f"prompt: allowed are a string or a list of {{role, content}} messages, given {_kind(prompt)}")
    return cast(Sequence[Mapping[str, str]], prompt)


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
        raise BadLine(f"{name}: an object of strings is allowed, given {_kind(labels)}")
    return labels


def _derived_id(fields: Mapping[str, Any], run: Run, occurrences: Occurrences) -> str:
    """`harvest-` and 128 bits. Equal JSON gives an equal id, however it is spelled."""
    line = _canonical(fields)
    options = {name: value for name, value in run.options.items() if value is not None}
    asked = _canonical({"options": options, "raw": run.raw, "occurrence": occurrences.count(line)})
    return "harvest-" + hashlib.sha256(asked + b"\n" + line).hexdigest()[:32]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _kind(value: object) -> str:
    """What a value is, without what it says."""
    names = {type(None): "nothing", str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), "a number")
