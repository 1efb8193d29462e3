"""Which checkpoints are in a folder, and which of them is the newest."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from bon_server.models.policy.checkpoints import checkpoints, look_at


def make(directory: Path) -> Path:
    """A directory that looks like a model; the next one is newer."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    time.sleep(0.02)  # file systems count time in ticks of some milliseconds
    return directory


def names(folder: Path) -> list[str]:
    return [checkpoint.directory.name for checkpoint in checkpoints(folder)]


def test_the_newest_is_first_whatever_its_name(tmp_path: Path) -> None:
    for name in ("step-900", "step-1000", "final", "another"):
        make(tmp_path / name)
    assert names(tmp_path) == ["another", "final", "step-1000", "step-900"]


def test_what_is_moved_or_copied_here_is_new_however_old_its_files_are(tmp_path: Path) -> None:
    moved, copied = make(tmp_path / "elsewhere" / "moved"), make(tmp_path / "elsewhere" / "copied")
    make(tmp_path / "watched" / "step-1")
    moved.rename(tmp_path / "watched" / "moved")
    assert names(tmp_path / "watched") == ["moved", "step-1"]
    time.sleep(0.02)
    shutil.copytree(copied, tmp_path / "watched" / "copied")
    assert names(tmp_path / "watched") == ["copied", "moved", "step-1"]
    time.sleep(0.02)
    os.utime(tmp_path / "watched" / "step-1")
    assert names(tmp_path / "watched") == ["step-1", "copied", "moved"]


def test_what_is_none(tmp_path: Path) -> None:
    make(tmp_path / "good")
    make(tmp_path / ".being-written")
    (tmp_path / "without-config").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["good"]
    assert names(tmp_path / "nowhere") == []


@pytest.mark.parametrize("kind", ["link", "name", "path"])
def test_a_pointer_alone_decides(kind: str, tmp_path: Path) -> None:
    first, second = make(tmp_path / "first"), make(tmp_path / "second")

    def point_at(directory: Path) -> None:
        fresh = tmp_path / ".new"
        if kind == "link":
            fresh.symlink_to(directory.name)
        else:
            fresh.write_text(f"{directory.name if kind == 'name' else directory}\n")
        fresh.replace(tmp_path / "current")

    point_at(first)
    assert names(tmp_path) == ["first"]
    point_at(second)
    assert names(tmp_path) == ["second"]
    point_at(tmp_path / "nowhere")
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a\0b", b"x" * 5000])
def test_a_pointer_to_nothing_points_to_nothing(content: bytes, tmp_path: Path) -> None:
    make(tmp_path / "model")
    (tmp_path / "current").write_bytes(content)
    assert names(tmp_path) in ([], ["model"])


def test_the_signature_changes_with_every_file_and_with_nothing_else(tmp_path: Path) -> None:
    directory = make(tmp_path / "model")
    seen = [look_at(directory)]
    assert look_at(directory) == seen[0]
    (directory / "optimizer.pt").write_bytes(b"not a part of the model")
    assert look_at(directory) == seen[0]
    (directory / "model.safetensors").write_bytes(b"WEIGHTS")
    seen.append(look_at(directory))
    (directory / "tokenizer.json").write_text("{}")
    seen.append(look_at(directory))
    (directory / "tokenizer.json").unlink()
    shutil.copy(directory / "model.safetensors", tmp_path / "copy")
    (tmp_path / "copy").replace(directory / "model.safetensors")
    seen.append(look_at(directory))
    assert len(set(seen)) == 4
