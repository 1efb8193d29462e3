"""`bon log import`: scored samples of other frameworks become records of kind `import`.

    rows ──► formats ──► line ──► gathering: lines of one prompt ──► importers ──► log.spool, with imported's keys

rows        JSON lines or Parquet, in order
formats     grouped, OpenRLHF, open-instruct, TRL GRPO, verl: each maps a row to an `ImportLine`
line        what all formats read into, and the checks they share; reasons name keys, never content
gathering   joins the candidates of a prompt in a temporary database on disk
imported    which lines the log has: written in the transaction of their record, so importing again adds nothing
importers   the run: batches, and a report on lines that were refused
"""
