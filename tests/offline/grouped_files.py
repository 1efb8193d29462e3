"""Import files to test with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bon_server.offline.importing.importers import import_files
from bon_server.offline.importing.options import ImportOptions, ImportResult

WORKED_EXAMPLE = [
    [0.7, 0.3, 0.5, 0.2],
    [0.4, 0.8, 0.6, 0.5],
    [0.9, 0.3, 0.4, 0.7],
    [0.2, 0.5, 0.8, 0.6],
    [0.5, 0.4, 0.3, 0.6],
]


def line(name: str, rewards: Sequence[float | None], **fields: Any) -> dict[str, Any]:
    """One prompt called `name`, its responses called `name.0`, `name.1`, …"""
    responses = [f"{name}.{i}" for i in range(len(rewards))]
    return {"prompt": f"prompt {name}", "responses": responses, "rewards": list(rewards)} | fields


def worked_example() -> list[dict[str, Any]]:
    """Five prompts, `0` to `4`, of four responses each."""
    return [line(str(i), rewards) for i, rewards in enumerate(WORKED_EXAMPLE)]


def import_lines(
    folder: Path, lines: Sequence[dict[str, Any] | str | bytes], log: str = "log", **options: Any
) -> ImportResult:
    """Writes the lines to `folder/import.jsonl` and imports them into `folder/log`."""
    file = folder / "import.jsonl"
    encoded = [one if isinstance(one, str | bytes) else json.dumps(one) for one in lines]
    file.write_bytes(b"".join((one if isinstance(one, bytes) else one.encode()) + b"\n" for one in encoded))
    return import_files(ImportOptions((file,), folder / log, **options))
