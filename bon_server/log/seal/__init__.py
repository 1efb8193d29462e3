"""Sealing: rows leave the spool for segments while commits go on.

    plan ──► write a file per date, fsync, rename ──► read back ──► remember request ids ──► complete
      note the range in the catalog                                         one transaction: enter files, drop rows

sealing   the steps, the same for records and for feedback
process   turns pages of rows into Arrow in a child process, so that commits do not wait for Python's lock
sealer    when: by size, by age, at shutdown; also runs the retention

A crash before `complete` leaves the rows in the spool and a noted range; the next sealing writes the same files again.
Damaged rows stay in the spool, where `bon log verify` names them.
"""
