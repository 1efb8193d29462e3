"""`bon bench soak`: mixed traffic for a long time, and then whether anything was lost, or is still held.

    server ──► warm-up ──► rest: what it holds ──► traffic ──► rest: what it holds now ──► end ──► the log

calls     what a caller may do, how often, and how it may end
traffic   many callers at once
ledger    what callers were told, and the log against it
seen      what the server holds, from outside: its metrics and /proc
checks    all of it against what is promised, each with a figure and a limit
run       the run and its report
"""
