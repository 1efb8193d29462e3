"""`bon harvest`: many prompts through one server; the scored candidates are in the server's log afterwards.

    prompts ──► lines: a request with a reproducible id ──► loop: a bounded number in flight ──► answers, progress

prompts    JSON lines, Parquet, or a folder of `datasets`, read as a stream
lines      the request id is the line's own, or a digest of what it asks; so a repeated command replays
loop       waits for a server that is full, restarting or away
progress   the command's run: connection, bar, file of answers
dry_run    tokens and time that a harvest would take, from a sample of which nothing is logged
"""
