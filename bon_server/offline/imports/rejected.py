"""The report on lines that were not imported: one JSON object each.

    {"file": "…", "line": 3, "reason": "…", "text": "…"}

It holds what the lines held, so it is for its owner only. It appears, whole, when the import ends.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from bon_server.log.whole_file import sync_folder, whole_file


class Rejected:
    """A report; its file is made for the first rejected line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.files = ExitStack()
        """Closing it gives the report its name."""
        self._file: BinaryIO | None = None

    def add(self, source: Path, number: int, reason: str, text: bytes) -> None:
        """number: of the line in its source, from 1."""
        if self._file is None:
            if not self.path.parent.exists():
                self.path.parent.mkdir(mode=0o700)
                sync_folder(self.path.parent.parent)
            self._file = self.files.enter_context(whole_file(self.path))
        self.count += 1
        row = {
            "file": str(source).encode(errors="backslashreplace").decode(),
            "line": number,
            "reason": reason.encode(errors="backslashreplace").decode(),
            "text": text.decode(errors="backslashreplace"),
        }
        self._file.write(msgspec.json.encode(row) + b"\n")
