"""Sealed rows in Parquet files that any engine reads as they lie.

    segments/date=YYYY-MM-DD/writer=ID/FIRST-LAST.parquet    one row per request, its candidates as list<struct>
    feedback/date=YYYY-MM-DD/writer=ID/FIRST-LAST.parquet    one row per observation

columns, feedback_columns   the Arrow schemas, and rows to batches and back; columns are only ever added
files                       names, row groups, checksums, writing whole
reader                      row groups read ahead on threads: only the columns and groups that a reader needs
where                       one filter, as SQL over the spool and as a mask over Arrow

FIRST and LAST are sequence numbers, so that sealing the same rows again makes the same name.
"""
