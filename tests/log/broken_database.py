"""A disk that fails, as the writer of a log meets it."""

from __future__ import annotations

from typing import Any


class BrokenDatabase:
    """The writer's connection, on a disk that fails with `error` when it is to be written to."""

    def __init__(self, database: Any, error: Exception) -> None:
        self._database = database
        self._error = error

    def execute(self, statement: str, *values: Any) -> Any:
        """Fails when a transaction is to be committed."""
        if statement == "COMMIT":
            raise self._error
        return self._database.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)
