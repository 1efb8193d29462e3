"""The server's life, from configuration to exit code.

    start   log ──► policy ──► reward model ──► ports ──► health SERVING
    drain   health NOT_SERVING ──► no new calls ──► running attempts end, or are stopped after the grace
    stop    ports ──► models ──► sealer ──► publisher ──► log

server            start, drain and stop; engines start before any gRPC object exists, because forking after it may hang
signals           the banner at start; from the first signal, or the first thing that broke, to an exit code
ports             binds gRPC and metrics
accepting         a gRPC server that no caller can end by the name of a method
listener          the gRPC port: whatever ends the server behind it, another one takes its place
health            whether new work can be taken on, progress of the engines included
restarts          starts a dead or hung policy engine again, and gives up when that does not help
weights_watcher   follows a folder of checkpoints and puts the newest into use

A start that fails leaves nothing running. While an engine is away, stored answers and scoring go on.
"""
