"""The server: gRPC in, an attempt at an answer, a committed record, gRPC out.

    call ──► auth/ ──► rpc/service ── parse, validate ──► attempt ── respond ──► reply
                                                             │
             deadline, quotas ──► admission/ permit ──► core.best_of_n ──► content ──► log.spool commit

rpc/          protobuf: nothing outside of it reads or builds a message of the service
auth/         keys, rights, certificates
admission/    permits, fair queue, quotas, deadlines
attempt       one attempt at one request; also finds the stored answer of a retry
content       which texts reach the log: all, none, or redacted
policies      the policy in use, and an earlier one until its last request ends
status        errors to gRPC status, in one exhaustive table
telemetry/    metrics, traces, log lines
lifecycle/    start, health, restarts, new weights, drain, stop

Invariants: the record is committed before its answer leaves. An attempt runs in its own task, so a caller who leaves
stops the sampling but loses nothing that was scored. Full means a typed refusal. Nothing blocks the event loop. No text
of a caller or a model appears in errors, log lines, metrics or traces.
"""
