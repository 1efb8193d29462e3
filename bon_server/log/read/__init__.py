"""The read side, for any process, also while the server writes and seals.

    LogReader ── one read transaction ──► catalog: which segments     ──► records, fields or Arrow batches
                                     └──► spool: pages of rows        ──►   in the order (writer, ordinal)

reader     a prefix of the log, as of opening, each record once, in bounded memory
feedback   observations, joined to records by caller, request id and attempt
snapshot   a name for a list of segments with their digests; `bon log snapshot`
stats      counts in one pass; `bon log stats`

A damaged file is an error that names it, or is left out and reported, as the caller asks.
"""
