"""Model directories appear whole, once, and are renewed when their source changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bon_server.system.files import STAMP_FILE, build_whole


def _writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return write


def test_built_once(tmp_path: Path) -> None:
    target = tmp_path / "a" / "model"
    assert build_whole(target, {"v": "1"}, _writer("one")) == target
    build_whole(target, {"v": "1"}, _writer("again"))
    assert (target / "weights").read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_renewed_when_the_stamp_differs(tmp_path: Path) -> None:
    build_whole(tmp_path / "m", {"v": "1"}, _writer("one"))
    build_whole(tmp_path / "m", {"v": "2"}, _writer("two"))
    assert (tmp_path / "m" / "weights").read_text() == "two"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        build_whole(tmp_path / "m", {"v": "1"}, fail)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=STAMP_FILE):
        build_whole(tmp_path / "m", {"v": "1"}, _writer("one"))
    assert (tmp_path / "m" / "thesis.txt").exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    build_whole(tmp_path / "m", {"v": "1"}, _writer("one"))
    assert (tmp_path / "m" / "weights").read_text() == "one"
