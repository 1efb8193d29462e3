"""The write side: commit, then reply. An SQLite database in WAL mode, and the threads around it.

    event loop      Spool.commit ── encode ──► GroupQueue ─┐            ┌─► futures, one wake-up per group
    writer thread                                          └─► BEGIN, INSERT …, COMMIT, fsync ─┘
    upkeep thread   moves the write-ahead log into the database, syncs for durability `async`, measures free space

spool      the front, for the process that holds the writer lock: open, commit, append, transaction, close
writer     one transaction at a time; what may be tried again and what is final
upkeep     checkpoints, and whether the disk has room for more work
lookup     what the log knows of a request id: in the spool, or in a segment; for retries
database   schema, opening, checks, rows
log_files  whether the files that are written to are still those of the log
clock      the time by which records are removed and ids forgotten: no clock alone decides what cannot be undone
pieces     changes of many rows in short transactions

An error of SQLite or of fsync other than a full disk is final: what is on disk is then unknown, and nothing is written
any more. A full disk refuses new work until there is room again.
"""
