"""A selection never mixes with other files and recovers from a crash at any file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bon_server.core.errors import LogError, LogLocked
from bon_server.core.selection import OfflineRule
from bon_server.offline.select.manifest import Manifest, write_manifest
from bon_server.offline.select.options import Filters
from bon_server.offline.select.select import SelectOptions, select
from bon_server.system.files import whole_file
from tests.offline.grouped_files import import_lines, line, worked_example


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(folder: Path, **options: object) -> Path:
    rule = OfflineRule.BEST_PER_PROMPT
    select(SelectOptions(**({"logs": (folder / "log",), "rule": rule, "out": folder / "out"} | options)))  # type: ignore[arg-type]
    return folder / "out"


TRUNCATED = Filters(keep_truncated=True)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    import_lines(tmp_path, worked_example())
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-00000.jsonl").write_text("somebody else's")
    with pytest.raises(LogError, match="is not empty and holds no selection"):
        run(tmp_path)
    for foreign in ("{", "[]", '{"name": "an app"}', "\udc80"):
        (out / "manifest.json").write_bytes(foreign.encode(errors="surrogateescape"))
        with pytest.raises(LogError, match=r"manifest\.json is not the manifest of a selection"):
            run(tmp_path)
    assert (out / "part-00000.jsonl").read_text() == "somebody else's"


def test_another_selection_is_not_overwritten(tmp_path: Path) -> None:
    import_lines(tmp_path, worked_example())
    before = contents(run(tmp_path))
    with pytest.raises(LogError, match=r"another selection \(its filters\)"):
        run(tmp_path, filters=TRUNCATED)
    import_lines(tmp_path, [line("new", [1.0])], reward_model="rm")
    with pytest.raises(LogError, match=r"another selection \(its filters, inputs\)"):
        run(tmp_path, filters=Filters(reward_model="rm"))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("renames", range(18))
def test_a_run_that_was_cut_off_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Cut off before each of the files that it writes; what was left over is finished, not mixed with other files."""
    import_lines(tmp_path, worked_example())
    import_lines(tmp_path, worked_example()[:2], log="log2")
    logs = {"logs": (tmp_path / "log", tmp_path / "log2"), "filters": Filters(normalise=True)}
    expected = contents(run(tmp_path, out=tmp_path / "expected", **logs) and tmp_path / "expected")
    rename, calls = Path.rename, iter(range(100))

    def power_cut(path: Path, target: Path) -> Path:
        if next(calls) == renames:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", power_cut)
        run(tmp_path, **logs)
    (tmp_path / "out" / ".part-00007.jsonl.tmp").write_text("torn")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert contents(run(tmp_path, **logs)) | {".part-00007.jsonl.tmp": b"torn"} == expected | {
        ".part-00007.jsonl.tmp": b"torn"
    }


def test_another_selection_starts_over_where_one_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_lines(tmp_path, worked_example())
    expected = contents(run(tmp_path, out=tmp_path / "expected") and tmp_path / "expected")

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bon_server.offline.select.select.write_manifest", power_cut)
        run(tmp_path, format="grouped")
    assert (tmp_path / "out" / "part-00000.jsonl").exists()
    assert contents(run(tmp_path)) == expected


def test_an_intact_selection_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_lines(tmp_path, worked_example())
    before = contents(run(tmp_path))
    with monkeypatch.context() as patch:
        patch.delattr("bon_server.offline.select.select.make_plan")
        assert contents(run(tmp_path)) == before
    (tmp_path / "out" / "meta.parquet").write_bytes(b"damage")
    assert contents(run(tmp_path)) == before


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert contents(tmp_path) == {"file": b"old"}
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"file": b"new"} and path.stat().st_mode & 0o777 == 0o600


def test_a_file_is_synced_before_and_its_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename = Path.rename

    def renaming(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync"))
    monkeypatch.setattr(Path, "rename", renaming)
    with whole_file(tmp_path / "file") as file:
        file.write(b"x")
    assert steps == ["fsync", "rename", "fsync"]


def test_two_at_a_time_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run begins just before the first one's last file, and ends later."""
    import_lines(tmp_path, worked_example())
    expected = contents(run(tmp_path, out=tmp_path / "expected") and tmp_path / "expected")

    def another_first(folder: Path, manifest: Manifest) -> None:
        with pytest.raises(LogLocked, match="is being written by another process"):
            run(tmp_path, filters=TRUNCATED)
        write_manifest(folder, manifest)

    monkeypatch.setattr("bon_server.offline.select.select.write_manifest", another_first)
    assert contents(run(tmp_path)) == expected


def test_what_another_process_finished_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_lines(tmp_path, worked_example())

    def looked_too_early(folder: Path) -> None:
        monkeypatch.undo()
        run(tmp_path)

    monkeypatch.setattr("bon_server.offline.select.select.finished", looked_too_early)
    with pytest.raises(LogError, match="was written by another process meanwhile"):
        run(tmp_path, filters=TRUNCATED)
    assert contents(run(tmp_path)) == contents(run(tmp_path, out=tmp_path / "expected") and tmp_path / "expected")


def test_what_a_finished_run_could_not_remove_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_lines(tmp_path, worked_example())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bon_server.offline.select.output_folder.shutil.rmtree", killed)
        run(tmp_path)
    assert (tmp_path / "out" / ".selecting").exists()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert contents(run(tmp_path)) == before


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_lines(tmp_path, worked_example())
    expected = contents(run(tmp_path, out=tmp_path / "expected") and tmp_path / "expected")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(LogError, match="out cannot be written: No space left"):
        patch.setattr("bon_server.offline.select.writing.MetaWriter.add", full)
        run(tmp_path)
    assert (tmp_path / "out" / ".selecting" / "export-00000.json").exists()
    with monkeypatch.context() as patch:
        patch.delattr("bon_server.offline.select.gathering._from_batch")  # what was read is not read again
        assert contents(run(tmp_path)) == expected
