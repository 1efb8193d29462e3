"""`bon bench soak`: mixed traffic for a long time, and then whether anything was lost, or is still held.

calls.py     what a caller may do, how often, and how it may end
traffic.py   many callers at once
ledger.py    what they were told
process.py, gauges.py   what the server holds, seen from outside
checks.py, logged.py    all of it against what is promised
run.py       the run
"""
