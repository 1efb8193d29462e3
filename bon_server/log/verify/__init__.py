"""`bon log verify`: reads everything in the log and names what is wrong, by kind, file and row. Changes nothing.

verify     the run and its report; segments, snapshots and descriptions against the catalog
rows       every record of segments and spool: digests, sequence numbers, duplicates, what must hold within a record
feedback   every observation, in the same way
scores     added scores: their files, and whether the records they belong to exist
"""
