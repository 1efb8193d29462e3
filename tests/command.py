"""The command `bon` in this process: what it prints, and how it ends."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from bon_server.cli import main


@dataclass(frozen=True)
class Ended:
    """A command that is done."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None
    """What the exit code and the line on stderr are of."""

    @property
    def output(self) -> str:
        """All of it."""
        return self.stdout + self.stderr


def run_bon(*words: object) -> Ended:
    """Runs `bon WORDS`. An error that the command does not turn into a sentence is raised."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code, error = 0, None
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main([str(word) for word in words])
        except SystemExit as exit_:
            code, error = int(exit_.code or 0), exit_.__context__
    return Ended(code, _text(stdout), _text(stderr), error)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
