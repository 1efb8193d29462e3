"""What operators see of a server: Prometheus metrics, OpenTelemetry traces, log lines. Never content or ids as labels.

metrics      counters and histograms of calls and of committed records
collectors   read when scraped: event-loop lag, the log's state, permits, engines with vLLM's own metrics
endpoint     the metrics over HTTP: open on loopback, elsewhere TLS and a key with the right `admin`
tracing      spans of queue, sampling, scoring and commit; the only module that imports OpenTelemetry
log_lines    lines for people or as JSON, each with its request id
"""
