"""Code of the operator's, `function:` rewards and `log.redact`, runs in processes that can be killed.

messages.py   the messages between server and worker
guard.py      what an exception of the operator's may tell: its type and its place
worker.py     the process that calls the function
pool.py       starts workers, gives them calls, kills those that are late, replaces those that died
"""
