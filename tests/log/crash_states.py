"""What a disk may hold after a power cut, worked out from what a process did to its files (see recorder.c).

The model is stricter than common file systems are. A crash may come after any operation. What was done before it is
certain only where a sync followed: of the file for its content and size, of the folder for the names in it. Of the
rest anything may be missing. All subsets are too many; tried are, after each operation: none missing, all missing, and
the last write torn at each 512 bytes; and before each sync, where most is uncertain: each one missing alone, and each
one there alone.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.log.preload import run_module

SECTOR_BYTES = 512
_ENTRY = struct.Struct("<cQQII")
NAMES = "CMRLU"
"""Kinds that change a folder; W and T change a file."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of a trace. Kinds are those of recorder.c."""

    kind: str
    file: int
    """The file it is about, also after its name changed; 0: none. For a folder's sync, see `path`."""
    offset: int
    path: str
    data: bytes

    @property
    def new_path(self) -> str:
        """Where a rename or link leads."""
        return self.data.decode()

    @property
    def folder(self) -> str:
        """The folder whose names it changes."""
        return str(PurePosixPath(self.new_path if self.kind in "RL" else self.path).parent)


@dataclass(frozen=True, slots=True)
class CrashState:
    """What may be there after a crash."""

    files: dict[str, bytes]
    """Content by path."""
    notes: tuple[str, ...]
    """What the process had noted by then, such as acknowledgements."""
    how: str
    """For the message of a failed test."""

    def build(self, old: Path, new: Path) -> None:
        """Writes the files that were under `old` to the same places under `new`, which must not exist."""
        new.mkdir(mode=0o700)
        for path, content in self.files.items():
            target = new / PurePosixPath(path).relative_to(old)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.write_bytes(content)


def recorded(recorder: Path, module: str, folder: Path, *arguments: str) -> list[Operation]:
    """What `python -m MODULE FOLDER ARGUMENTS` does in a new folder. recorder: `recorder.c`, compiled."""
    trace = folder.with_name("trace")
    folder.mkdir()
    run_module(recorder, module, folder, *arguments, RECORD_FOLDER=str(folder), RECORD_TRACE=str(trace))
    return read_trace(trace)


def read_trace(trace: Path) -> list[Operation]:
    """The operations in order. Inodes are told apart from those that were reused."""
    data, at = trace.read_bytes(), 0
    operations: list[Operation] = []
    files: dict[int, int] = {}
    while at < len(data):
        kind, inode, offset, path_length, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        path, content = data[at : at + path_length], data[at + path_length : at + path_length + length]
        at += path_length + length
        if kind == b"C":
            files[inode] = len(operations) + 1
        operations.append(Operation(kind.decode(), files.get(inode, 0), offset, path.decode(), content))
    return operations


def in_each_state(
    operations: Sequence[Operation],
    old: Path,
    new: Path,
    check: Callable[[CrashState, Path], None],
    torn: bool = True,
    since: str | None = None,
) -> int:
    """Builds each state at `new`, which must not exist, checks it, and removes it. Returns how many there were.

    old: the folder whose files were recorded. torn, since: see `crash_states`.
    """
    count = 0
    for state in crash_states(operations, torn=torn, since=since):
        count += 1
        state.build(old, new)
        try:
            check(state, new)
        except Exception as error:
            raise AssertionError(state.how) from error
        shutil.rmtree(new)
    return count


def crash_states(
    operations: Sequence[Operation],
    ignored: tuple[str, ...] = ("-shm",),
    torn: bool = True,
    since: str | None = None,
) -> Iterator[CrashState]:
    """Every state once, in the order of the operations. ignored: files with these endings do not count. torn: also
    those in which the last write is torn, which are most of them. since: only those after this was noted."""
    seen: set[tuple[bytes, int]] = set()
    notes: list[str] = []
    folders = _folders(operations)
    for end in range(len(operations) + 1):
        if end and operations[end - 1].kind == "N":
            notes.append(operations[end - 1].data.decode())
        if since is not None and since not in notes:
            continue
        for how, kept in _choices(operations, end, torn):
            gone = folders - _folders(kept)
            files = {
                path: content
                for path, content in _files(kept).items()
                if not path.endswith(ignored) and gone.isdisjoint(map(str, PurePosixPath(path).parents))
            }
            if (key := (_digest(files), len(notes))) not in seen:
                seen.add(key)
                yield CrashState(files, tuple(notes), f"after {end} of {len(operations)} operations, {how}")


def _choices(operations: Sequence[Operation], end: int, torn: bool) -> Iterator[tuple[str, list[Operation]]]:
    """Each way in which the first `end` operations may have reached the disk."""
    done = list(operations[:end])
    uncertain = _uncertain(done)
    yield "nothing missing", done
    yield "all that was not synced missing", _without(done, set(uncertain))
    last = done[-1] if done else None
    if torn and last is not None and last.kind == "W":
        for size in range(0, len(last.data), SECTOR_BYTES):
            part = Operation("W", last.file, last.offset, "", last.data[:size])
            yield f"the last write torn after {size} bytes", [*done[:-1], part]
            yield f"only {size} bytes of the last write", [*_without(done, set(uncertain)), part]
    if end < len(operations) and operations[end].kind == "S":
        for one in uncertain:
            yield f"operation {one} missing", _without(done, {one})
            yield f"of what was not synced only operation {one}", _without(done, set(uncertain) - {one})


def _without(done: Sequence[Operation], missing: set[int]) -> list[Operation]:
    return [operation for index, operation in enumerate(done) if index not in missing]


def _uncertain(done: Sequence[Operation]) -> list[int]:
    """Indices of what no sync followed."""
    synced_files: set[int] = set()
    synced_folders: set[str] = set()
    uncertain = []
    for index in range(len(done) - 1, -1, -1):
        operation = done[index]
        if operation.kind == "S":
            synced_files.add(operation.file)
            synced_folders.add(operation.path)
        elif operation.kind in "WT":
            uncertain += [index] if operation.file not in synced_files else []
        elif operation.kind in NAMES:
            uncertain += [index] if operation.folder not in synced_folders else []
    return uncertain


def _files(operations: Sequence[Operation]) -> dict[str, bytes]:
    """Content by path after these operations on nothing."""
    contents: dict[int, bytearray] = {}
    names: dict[str, int] = {}
    for operation in operations:
        match operation.kind:
            case "W":
                _write(contents.setdefault(operation.file, bytearray()), operation.offset, operation.data)
            case "T":
                _resize(contents.setdefault(operation.file, bytearray()), operation.offset)
            case "C":
                names[operation.path] = operation.file
            case "R" if operation.path in names:
                names[operation.new_path] = names.pop(operation.path)
            case "L" if operation.path in names:
                names[operation.new_path] = names[operation.path]
            case "U":
                names.pop(operation.path, None)
    return {path: bytes(contents.get(file, b"")) for path, file in names.items()}


def _folders(operations: Sequence[Operation]) -> set[str]:
    """Folders that were made, but for one that everything is in: who recorded it did not see whether that stays."""
    paths = [operation.path for operation in operations if operation.path]
    made = {operation.path for operation in operations if operation.kind == "M"}
    return {folder for folder in made if not all(path.startswith(folder) for path in paths)}


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        _resize(content, offset)
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _digest(files: dict[str, bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        digest.update(f"{path}\0{len(files[path])}\0".encode())
        digest.update(files[path])
    return digest.digest()
