"""What is trained on: a folder that `bon select` wrote, checked against its manifest, or one file of rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bon_server.core.errors import ConfigError, TrainingError
from bon_server.core.selection import OfflineRule
from bon_server.offline.select.manifest import MANIFEST_NAME, Manifest, Output, read_manifest
from bon_server.system.files import sha256_of

COLUMNS = {
    "trl-tokens": ("input_ids", "labels"),
    "trl-dpo": ("prompt", "chosen", "rejected"),
    "trl-sft": ("prompt", "completion"),
    "messages": ("messages",),
}
"""Formats that can be trained on, and the columns that tell them; Parquet files hold those of trl-sft or trl-dpo."""
FORMATS_OF = {"sft": ("trl-sft", "trl-tokens", "messages"), "dpo": ("trl-dpo",)}
"""By method."""
Row = dict[str, Any]
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet")
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class TrainingSource:
    """Rows to train on, not read yet."""

    format: str
    """A key of `COLUMNS`."""
    files: tuple[Path, ...]
    sha256: str
    """Of the manifest, which has the digests of the files; of a file without one: of itself."""
    manifest: Manifest | None
    endings: dict[str, dict[str, list[str | None]]]
    """Finish reasons of candidates, by the file's name and the role (`chosen`, `rejected`, or empty), a line each."""

    def rows(self) -> Iterator[tuple[Path, int, Row]]:
        """(file, line from 0, row). Raises TrainingError: a line that cannot be read or lacks a column."""
        for file in self.files:
            for number, row in enumerate(_read(file)):
                missing = [name for name in COLUMNS[self.format] if name not in row]
                if missing:
                    raise TrainingError(f"{file}, line {number + 1}: it has no {missing[0]}, as {self.format} rows do")
                yield file, number, row

    def ending(self, file: Path, line: int, role: str = "") -> str | None:
        """How a candidate ended, `stop` or `length`; None where nothing says it."""
        reasons = self.endings.get(file.name, {}).get(role, [])
        return reasons[line] if line < len(reasons) else None


def open_source(name: str, path: Path, method: str) -> TrainingSource:
    """Looks at training data. name: of the option, for messages.

    Raises ConfigError: a format that the method does not take. TrainingError: there is none, an unfinished selection,
    or files that are not as the manifest says.
    """
    if path.is_dir():
        return _open_folder(name, path, method)
    if not path.is_file():
        raise TrainingError(f"{name}: {path} given; there is no such folder or file")
    if not path.name.endswith(_SUFFIXES):
        raise ConfigError(f"{name}: {path} given; allowed are folders, and files named {', '.join(_SUFFIXES)}")
    first = next(_read(path), None)
    if first is None:
        raise TrainingError(f"{name}: {path} has no rows")
    found = next((form for form, columns in COLUMNS.items() if all(column in first for column in columns)), None)
    _check_format(name, path, found or f"with the columns {', '.join(sorted(first))}", method)
    _check_weights(path, "weight" in first)
    return TrainingSource(str(found), (path,), sha256_of(path), None, {})


def _open_folder(name: str, folder: Path, method: str) -> TrainingSource:
    manifest = read_manifest(folder)
    if manifest is None:
        raise TrainingError(f"{name}: {folder} has no {MANIFEST_NAME}, so it is no selection, or an unfinished one")
    pairs = OfflineRule(manifest["rule"]).shape is OfflineRule.PAIRS
    form = manifest["format"]
    form = ("trl-dpo" if pairs else "trl-sft") if form == "parquet" else form
    _check_format(name, folder, form, method)
    _check_weights(folder, bool(manifest["parameters"].get("weights")))
    for output in manifest["outputs"]:
        _check_file(folder, output)
    data = [output["file"] for output in manifest["outputs"] if output["role"] == "data" and output["rows"]]
    meta = [output["file"] for output in manifest["outputs"] if output["role"] == "meta"]
    endings = _endings([folder / file for file in meta])
    files = tuple(folder / file for file in data)
    return TrainingSource(form, files, sha256_of(folder / MANIFEST_NAME), manifest, endings)


def _check_format(name: str, path: Path, form: str, method: str) -> None:
    if form not in FORMATS_OF[method]:
        allowed = ", ".join((*FORMATS_OF[method], "parquet"))
        raise ConfigError(f"{name}: {path} holds rows {form}; {method} takes the formats {allowed}")


def _check_weights(path: Path, weighted: bool) -> None:
    if weighted:
        raise ConfigError(
            f"data: {path} holds weighted rows, and every row is trained on alike; select draws instead (soft with -k)"
        )


def _check_file(folder: Path, output: Output) -> None:
    path = folder / output["file"]
    try:
        intact = sha256_of(path) == output["sha256"]
    except FileNotFoundError:
        raise TrainingError(f"{path} is missing, which the manifest names") from None
    if not intact:
        raise TrainingError(f"{path} was changed since it was written: its SHA-256 is not the manifest's")


def _endings(files: Sequence[Path]) -> dict[str, dict[str, list[str | None]]]:
    """From the sidecar, which is in the order of the lines."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, list[str | None]]] = {}
    for path in files:
        columns = pq.read_table(path, columns=["file", "role", "finish_reason"]).to_pydict()
        for file, role, reason in zip(columns["file"], columns["role"], columns["finish_reason"], strict=True):
            found.setdefault(file, {}).setdefault(role or "", []).append(reason)
    return found


def _read(path: Path) -> Iterator[Row]:
    return _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise TrainingError(f"{path} cannot be read ({type(error).__name__})") from error


def _read_lines(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    packing = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    decoder, number = msgspec.json.Decoder(Row), 0
    try:
        with pa.input_stream(str(path), compression=packing) as packed, io.BufferedReader(packed) as file:
            for number, line in enumerate(file, 1):  # noqa: B007 -- it is told when a line cannot be read
                if line.strip():
                    yield decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}, line {number}: it is no JSON object") from error
    except (OSError, pa.ArrowException) as error:
        raise TrainingError(f"{path} cannot be read ({type(error).__name__})") from error


def described(source: TrainingSource) -> dict[str, Any]:
    """For `training.json`: which data it is, and where its digests come from."""
    manifest = source.manifest
    said: dict[str, Any] = {"format": source.format, "sha256": source.sha256, "rule": None, "counts": None}
    if manifest is not None:
        said |= {"rule": manifest["rule"], "counts": manifest["counts"], "policies": manifest["policies"]}
        said |= {"seed": manifest["seed"], "k": manifest["k"], "inputs": len(manifest["inputs"])}
    return json.loads(json.dumps(said))  # type: ignore[no-any-return]
