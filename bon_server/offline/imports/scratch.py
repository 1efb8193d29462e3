"""A private database on disk for what may not fit into memory; gone when it is closed, or with the process."""

from __future__ import annotations

import apsw


def scratch_database(schema: str) -> apsw.Connection:
    """An empty database with these tables. Nothing in it is durable."""
    database = apsw.Connection("")
    database.pragma("journal_mode", "OFF")
    database.pragma("synchronous", "OFF")
    database.execute(schema)
    database.execute("BEGIN")  # one transaction for all: without it every row would be one of its own
    return database
