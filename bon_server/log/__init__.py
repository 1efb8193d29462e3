"""The log: every request with all its candidates, durable before its answer leaves. One writer, any number of readers.

    LOG/spool.sqlite, spool.sqlite-wal                    committed and not sealed yet; the catalog
        segments/date=YYYY-MM-DD/writer=ID/FIRST-LAST.parquet   sealed records
        feedback/date=YYYY-MM-DD/writer=ID/FIRST-LAST.parquet   sealed feedback
        scores/NAME/…  snapshots/NAME.json                added rewards; named lists of segments
        writer.lock                                       held by the one process that writes

    commit ──► spool/ ── group commit, fsync ──► reply
                 │
               seal/ ──► segments/ ──► publish/ ──► object store
                             │
               read/ ◄───────┴── spool/, scores/          remove/: erase, expire          verify/: check all of it

record, feedback   the two kinds of rows; both schemas only grow
catalog            tables of the spool that say which segments are in the log
published          which segments are in an object store, and their descriptions

Invariants: a record has one sequence number (`ordinal`), in commit order, never used again. It is in the spool or in
one segment of the catalog, never in both and never in none: the transaction that enters a segment drops its rows.
Segments do not change, but for an erasure. The order of a log is (writer, ordinal), whoever reads it.
"""
