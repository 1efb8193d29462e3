"""Every state that a power cut may leave the spool in: what was acknowledged is there, once, and only whole records.

What the writer does to its files is recorded once; the states are then built and opened one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bon_server.core.types import Durability
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.log.spool.database import row_of
from bon_server.log.spool.writer import Writer
from bon_server.system.lock import WriterLock
from tests.log.crash_states import CrashState, Operation, crash_states, in_each_state, read_trace
from tests.log.preload import compiled, run_module
from tests.log.records import record


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library made of `recorder.c`."""
    return compiled("recorder", tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: here the states are opened, whose syncs need not be real."""
    memory = Path("/dev/shm")
    # A name of its own: a run that was killed leaves its folder behind.
    with tempfile.TemporaryDirectory(prefix="bon-states-", dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def _trace(recorder: Path, tmp_path: Path, *arguments: str) -> list[Operation]:
    trace = tmp_path / "trace"
    folder = tmp_path / "log"
    environment = {"RECORD_FOLDER": str(folder), "RECORD_TRACE": str(trace)}
    run_module(recorder, "tests.log.recorded_writer", folder, *arguments, **environment)
    return read_trace(trace)


def _opened(folder: Path) -> list[Record]:
    """What recovery makes of a state, after one more record was committed and that was closed."""
    failures: list[Exception] = []
    lock = WriterLock(folder)
    writer = Writer(folder, lock, failures.append)
    with ExitStack() as stack:
        stack.callback(lock.release)
        stack.callback(writer.close)
        recovered = writer.recovery.records
        (ordinal,) = writer.write([row_of(record("later"))])
    assert not failures
    with LogReader(folder) as reader:
        *found, later = list(reader.records())
    assert (later.request_id, later.ordinal, len(found)) == ("later", ordinal, recovered)
    return found


def _in_each_state(
    operations: list[Operation], old: Path, folder: Path, check: Callable[[CrashState, list[Record]], None]
) -> int:
    """How many states there were."""
    return in_each_state(operations, old, folder / "log", lambda state, here: check(state, _opened(here)))


def _whole_and_once(state: CrashState, found: list[Record]) -> dict[str, int]:
    """Ordinals by request id, where each record is one that was submitted, as it was submitted."""
    submitted = {line.split()[1] for line in state.notes if line.startswith("submitted")}
    ordinals = {one.request_id: one.ordinal or 0 for one in found}
    assert len(ordinals) == len(found) and ordinals.keys() <= submitted
    assert all(one == replace(record(one.request_id), ordinal=one.ordinal) for one in found)
    return ordinals


def _noted(state: CrashState, what: str) -> dict[str, int]:
    """Ordinals by request id, of what was noted as `acknowledged` or `found`."""
    lines = [line.split() for line in state.notes]
    return {line[1]: int(line[2]) for line in lines if line[0] == what}


def _holds_the_promise(state: CrashState, found: list[Record]) -> None:
    assert _noted(state, "acknowledged").items() <= _whole_and_once(state, found).items()


def _keeps_what_was_found(state: CrashState, found: list[Record]) -> None:
    assert _noted(state, "found").items() <= _whole_and_once(state, found).items()


def _holds_a_prefix(state: CrashState, found: list[Record]) -> None:
    ordinals = sorted(_whole_and_once(state, found).values())
    assert ordinals == list(range(1, len(ordinals) + 1))


@pytest.mark.parametrize(
    ("durability", "commits"),
    [
        (Durability.FSYNC, 6),
        pytest.param(Durability.FSYNC, 20, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param(Durability.GROUP, 6, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_what_was_acknowledged_survives_every_power_cut(
    recorder: Path, tmp_path: Path, fast_folder: Path, durability: Durability, commits: int
) -> None:
    operations = _trace(recorder, tmp_path, durability, str(commits))
    assert sum(operation.data.startswith(b"acknowledged") for operation in operations) > 3 * commits
    assert _in_each_state(operations, tmp_path / "log", fast_folder, _holds_the_promise) > 50 * commits


@pytest.mark.parametrize("commits", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.long])])
def test_durability_async_loses_only_the_newest(
    recorder: Path, tmp_path: Path, fast_folder: Path, commits: int
) -> None:
    operations = _trace(recorder, tmp_path, Durability.ASYNC, str(commits))
    assert _in_each_state(operations, tmp_path / "log", fast_folder, _holds_a_prefix) > 50 * commits


def test_what_a_start_found_unsynced_survives_from_then_on(recorder: Path, tmp_path: Path, fast_folder: Path) -> None:
    """A killed writer left it to the kernel; the next one may have answered from it."""
    _trace(recorder, tmp_path, Durability.ASYNC, "2")
    operations = _trace(recorder, tmp_path, Durability.FSYNC, "0")
    assert sum(operation.data.startswith(b"found") for operation in operations) == 8
    assert _in_each_state(operations, tmp_path / "log", fast_folder, _keeps_what_was_found) > 50


def test_without_syncs_this_would_fail(recorder: Path, tmp_path: Path, fast_folder: Path) -> None:
    operations = _trace(recorder, tmp_path, Durability.FSYNC, "4", "OFF")
    with pytest.raises(AssertionError, match=r"after \d+ of"):
        _in_each_state(operations, tmp_path / "log", fast_folder, _holds_the_promise)


def test_the_states_of_a_small_history() -> None:
    create = Operation("C", 1, 0, "/f/a", b"")
    write = Operation("W", 1, 0, "", b"x" * 700)
    sync = Operation("S", 1, 0, "/f/a", b"")
    note = Operation("N", 0, 0, "", b"done")
    folder = Operation("S", 0, 0, "/f", b"")
    states = [(state.files, state.notes) for state in crash_states([create, write, sync, note, folder])]
    none: dict[str, bytes] = {}
    empty, half, whole = {"/f/a": b""}, {"/f/a": b"x" * 512}, {"/f/a": b"x" * 700}
    assert all(state in states for state in [(none, ()), (empty, ()), (half, ()), (whole, ()), (whole, ("done",))])
    assert (none, ("done",)) in states, "the name was not synced yet"
    assert (half, ("done",)) not in states and (empty, ("done",)) not in states
    assert len(states) == len({(str(files), notes) for files, notes in states})
    last = list(crash_states([create, write, sync, note, folder]))[-1]
    assert last.files == whole or last.files == none
