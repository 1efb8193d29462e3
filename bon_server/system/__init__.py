"""What the server needs of Linux: files, locks, child processes and memory. Knows nothing of models and logs.

files           whole files: temporary name, fsync, rename, fsync of the folder; and folders built in the same way
lock            one writer for a folder, by flock, which the kernel releases when the process ends
child_process   processes that die with their parent: a step with a model in it gives its memory back when it ends
supervision     threads and tasks in the background, none of which ends unseen
terminal        output: control characters are visible, and closed streams do no harm
telemetry       what an engine says of itself, in a type that needs no vLLM
memory          memory of the machine, the control group and the GPU: how much there is, how much is free

Foreign exceptions end here: callers see a `BonError` that names the path and the reason.
"""
