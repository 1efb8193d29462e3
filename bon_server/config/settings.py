"""One typed configuration, frozen at start: defaults < TOML file < BON_* environment < command line.

A key `limits.max_n` is `max_n` in the table `[limits]` of the file, `BON_LIMITS_MAX_N` in the environment and
`--set limits.max_n=64` on the command line. The ranges below are enforced; an unknown key is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from bon_server.config.security import SecurityConfig
from bon_server.config.sources import parse_assignments as parse_assignments
from bon_server.config.sources import read_settings
from bon_server.core.errors import ConfigError
from bon_server.core.types import Durability

# Every number has both bounds: what is absurd is refused at the start, not met by a thread that it breaks. The upper
# ones are far above what anybody wants, and work.
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Gpus = Annotated[int, Meta(ge=1, le=1024)]
Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 50)]
MessageBytes = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
"""gRPC counts them in 32 bits."""
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]
Seconds = Annotated[float, Meta(ge=0.001, le=31_536_000)]
"""Up to a year."""
Share = Annotated[float, Meta(ge=0.001, le=1)]


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Listen for gRPC at this address. Beyond loopback it needs TLS and API keys."""
    port: Port = 50051
    """Listen for gRPC on this port; 0 takes a free one, which the ready file names."""
    metrics_host: str = "127.0.0.1"
    """Serve metrics at this address. Beyond loopback it needs TLS, and a key with the right `admin`."""
    metrics_port: Port = 9464
    """Serve metrics on this port; 0 takes a free one."""
    ready_file: str | None = None
    """Write the server's addresses to this file, as JSON, once it answers. Default: no file."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The language model that is sampled."""

    model: str = ""
    """Sample from this policy: a directory, a hub id, or `synthetic[:key=value,...]`. There is no default."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; for a directory, the digest that its weights must have. None: any."""
    dtype: str = "auto"
    """`bfloat16`, `float16`, `float32` or `auto`. `auto` is the model's own, except float32 on CPUs without bf16
    instructions, and half precision on GPUs for models in float32 (vLLM's rule)."""
    max_model_len: Tokens | None = None
    """Longest prompt plus completion. Lower values need less memory. None: the model's own."""
    max_num_seqs: Count = 128
    """Candidates decoded at the same time; more candidates wait in the engine."""
    kv_cache_memory_bytes: Bytes | None = None
    """Memory for attention keys and values. On a GPU the share must be free all the same, and a larger cache goes
    beyond it. None: on a CPU 1 GiB, on a GPU the rest of `gpu_memory_utilization`."""
    gpu_memory_utilization: Share = 0.7
    """Share of a GPU's memory that the engine may take; the reward model needs the rest. Not used on a CPU."""
    tensor_parallel_size: Gpus = 1
    """Number of GPUs that the model is split over (tensor parallelism). Not used on a CPU."""
    data_parallel_size: Gpus = 1
    """Copies of the model that share the candidates (data parallelism). Each has `tensor_parallel_size` GPUs of its
    own, and the full `max_num_seqs` and cache. Not used on a CPU."""
    cpus: str = "all"
    """CPUs the engine computes on: `all` this process may use, or a list such as `0-3,8`. Not used on a GPU."""
    engine_metrics: bool = True
    """Whether to keep vLLM's own metrics. They take about 14 µs of the server's processor time for each token. The
    server notices a hanging engine without them too."""
    constraint_trial_ms: Milliseconds = 250
    """Processor time that compiling a constraint and trying it on 64 tokens may take. The server rejects a
    constraint that takes longer."""
    seed: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)] | None = None
    """Seed of the engine for candidates without one. None: random, so that a restart draws new samples."""
    watch: str | None = None
    """Load the newest checkpoint of this folder while serving. The old weights stay until the new ones are tested, so
    there must be memory for both. Default: keep the weights of the start."""
    watch_poll_s: Seconds = 2.0
    """How often the server looks at that folder. It takes a checkpoint that is the same at two looks."""
    watch_drain_s: Seconds = 600.0
    """How long requests may go on with replaced weights. Requests that take longer are UNAVAILABLE, and callers may
    retry."""
    restarts: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """How many times in a row the server restarts an engine that died, or made no step for `limits.engine_stall_s`.
    Meanwhile it rejects requests that need samples. 0: the server ends. Not together with `watch`."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The model or function that scores."""

    models: tuple[str, ...] = ()
    """Score with this reward model: a directory or hub id (run by transformers), `vllm:` and one of these (a vLLM
    engine of its own), `function:module:name`, or `synthetic[:key=value,...]`. `NAME=` in front gives it a name. May
    be repeated: several models score together. There is no default."""
    revision: str | None = None
    """Hub revision. None: the hub's default branch."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`. Half precision quantises rewards and makes ties."""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda` or `cuda:1`. Not used with `vllm:`, which computes on the
    policy's device."""
    timeout_s: Annotated[float, Meta(ge=0.001, le=3600)] = 30.0
    """`function:` only: time limit of one call. The server ends a call that takes longer, and its candidate is FAILED
    with the error `timeout`."""
    processes: Annotated[int, Meta(ge=1, le=256)] | None = None
    """`function:` only: processes that call the function. A plain function runs one call at a time in each, an async
    one up to 128. None: as many as there are CPUs, at most 4."""
    max_model_len: Tokens | None = None
    """Longest prompt plus completion; longer ones get no reward. Lower values need less memory. None: the model's
    own."""
    batch_tokens: Tokens = 4096
    """Tokens in one forward pass, padding included."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """CPU only, transformers only: threads of a forward pass; 0: torch's default."""
    share_prompts: bool | None = None
    """Whether a decoder computes a prompt once for all its completions. None: yes on a CPU, where large batches
    gain little. `vllm:` always does, in blocks."""
    kv_cache_memory_bytes: Bytes | None = None
    """`vllm:` only: memory for attention keys and values, of each such model. It must hold one input of
    `max_model_len`. Encoders need none. None: on a CPU 1 GiB, on a GPU the rest of `gpu_memory_utilization`."""
    gpu_memory_utilization: Share = 0.2
    """`vllm:` only: share of a GPU's memory that each such engine may take. Not used on a CPU."""
    cpus: str = "all"
    """`vllm:` only: CPUs the engine computes on, `all` or a list as in `policy.cpus`. Not used on a GPU."""
    engine_metrics: bool = True
    """`vllm:` only: whether to keep vLLM's own metrics, as `policy.engine_metrics`."""
    combine: str = "mean"
    """Several models: the reward is their weighted `mean`, their `min`, or `mean-minus-k-std`."""
    weights: Mapping[str, Annotated[float, Meta(gt=0, le=1e9)]] = field(default_factory=dict)
    """Several models: weight of each by its name, above 0; the default of a model is 1. `min` takes no weights."""
    std_factor: Annotated[float, Meta(ge=0, le=1e6)] = 1.0
    """The k of `mean-minus-k-std`, which lowers the reward where the models disagree."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a request, and all requests together, may ask for."""

    max_n: Count = 128
    """Highest `n`."""
    max_prompt_tokens: Tokens | None = None
    """Longest prompt. None: the policy's context."""
    max_message_bytes: MessageBytes = 4 << 20
    """Largest gRPC message, both ways."""
    max_metadata_bytes: MessageBytes = 16 << 10
    """Largest gRPC metadata."""
    max_bytes_in_flight: Bytes = 256 << 20
    """Most bytes of requests in memory, over all callers. A call reserves `max_message_bytes` until its message has
    arrived, and then holds the true size until it is answered. The server rejects a call that finds no room within
    `max_queue_s`."""
    slow_sender_s: Seconds = 30.0
    """The server ends a call whose message has not arrived after so long."""
    max_connections: Count = 4096
    """Most connections at once; fewer if the limit of descriptors (`ulimit -n`) leaves fewer. The server closes
    further connections immediately."""
    handshake_s: Seconds = 10.0
    """The server closes a connection on which TLS and HTTP/2 have not begun after so long."""
    idle_connection_s: Seconds = 300.0
    """The server closes a connection without a call after so long; gRPC's clients make another one when they need
    it."""
    max_constraint_bytes: MessageBytes = 64 << 10
    """Largest JSON schema, or all choices together."""
    max_schema_depth: Count = 32
    """How deeply a JSON schema may nest objects and lists."""
    max_schema_values: Count = 4096
    """Most values of any kind in a JSON schema."""
    max_regex_bytes: MessageBytes = 4096
    """Longest regular expression."""
    max_choices: Count = 1024
    """Most choices of one request."""
    max_candidates_in_flight: Count = 512
    """Candidates being sampled or scored at once, over all callers."""
    max_candidates_queued: Annotated[int, Meta(ge=0, le=1_000_000)] = 2048
    """Candidates waiting for a permit. Beyond this, the server rejects requests immediately."""
    max_queue_s: Seconds = 1.0
    """A request waits only if it should start within so many seconds, or within half of the recent duration of
    requests if that is longer. Otherwise the server rejects it immediately."""
    max_queue_share: Share = 0.5
    """Share of `max_candidates_queued` that one caller may fill: a principal or, without keys, a connection."""
    retry_after_ms: Milliseconds = 500
    """Retry delay (pushback) that the server sends with rejections that callers may retry."""
    default_deadline_s: Seconds = 600.0
    """Deadline of calls that set none."""
    deadline_margin_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 100
    """Time kept free before a deadline for stopping, choosing, committing and answering. The server keeps more if
    these steps took longer lately."""
    slow_reader_s: Seconds = 60.0
    """The server ends a stream whose reader takes no message for so long. A retry with its request id gets the
    stored answer."""
    engine_stall_s: Seconds = 120.0
    """An engine with work that makes no step for so long has hung: health says NOT_SERVING, and the server ends
    with an error. The value must exceed the longest step, which on a CPU is that of a whole prompt."""
    loop_stall_s: Annotated[float, Meta(ge=1, le=1_000_000)] = 120.0
    """A server that is itself stuck for so long prints the stacks of its threads and ends with an error. A process that
    is stopped (`docker pause`, a debugger) counts as stuck; a machine that sleeps does not."""
    drain_s: Seconds = 30.0
    """How long running calls may take to finish after SIGTERM, SIGINT or SIGHUP."""


@dataclass(frozen=True, kw_only=True)
class DefaultsConfig:
    """What a request leaves unset."""

    n: Count = 16
    """Number of candidates."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.8
    """Softmax temperature."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Nucleus sampling. On CPU values below 1 cost about 30 % of the throughput."""
    max_tokens: Tokens = 256
    """Longest completion; less where the prompt leaves less."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where and how records are kept."""

    directory: str = ""
    """Keep the log in this folder. The server creates it if it is missing. There is no default."""
    durability: Durability = Durability.FSYNC
    """The promise of OK, which every answer names. `fsync`: the record was synced to disk before the answer left;
    records that arrive during one sync share the next. `group`: the same promise, but a record waits `linger_ms`
    for others to share its sync. `async`: the record was handed to the kernel: it survives a killed server, but a
    crash of the machine loses the records since the last sync, see `async_sync_ms`."""
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 2.0
    """Durability `group`: how long a record waits for others. Longer waits make fewer syncs and later answers."""
    group_records: Count = 256
    """Most records in one transaction, which has one sync."""
    async_sync_ms: Annotated[float, Meta(ge=1, le=60_000)] = 200.0
    """Durability `async`: time between syncs. A power cut can lose the records of this time, plus the time of a
    sync and a checkpoint."""
    queue_bytes: Bytes = 64 << 20
    """Most bytes of encoded records that wait to be committed. Beyond this, the server rejects new requests before
    it samples."""
    min_free_bytes: Annotated[int, Meta(ge=0, le=1 << 60)] = 256 << 20
    """With less free space on the log's disk, the server rejects new requests before it samples. It looks every
    second. It still logs running requests, so leave room for them."""
    allow_metadata_only: bool = True
    """Whether a request may ask that its prompt and completions are not logged."""
    allow_none: bool = True
    """Whether a request may ask that nothing of it is logged."""
    redact: str | None = None
    """`module:function`, which gets each text before it is logged and returns the text to log. None: the log gets
    the original texts."""
    redact_timeout_s: Annotated[float, Meta(ge=0.001, le=60)] = 5.0
    """Time limit of one call of `redact`. The server ends a call that takes longer; the request is then INTERNAL, and
    nothing of it is logged."""
    seal_bytes: Bytes = 64 << 20
    """The server seals records from the spool into a segment once there are so many bytes of them. This is also a
    segment's size before compression."""
    seal_age_s: Seconds = 3600.0
    """The server also seals records once the oldest is so old."""
    clock_is_right: bool = False
    """Confirms the wall clock for this start. Set it when the clock is more than an hour ahead of the time that the log
    proves, as after a long time off. Until then the server removes and forgets nothing by age
    (`bon_log_clock_doubt_seconds`)."""
    seal_on_shutdown: bool = True
    """Whether a clean shutdown seals the remaining records."""
    replay_window_s: Annotated[float, Meta(ge=0, le=315_360_000)] = 86400.0
    """Least time after sealing for which a record answers retries of its request id, unless `retain_days` or
    `retain_bytes` removes it earlier."""
    publish: str | None = None
    """Copy sealed segments to `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix` or
    `file:///folder`. Any number of servers may share one place. Unsealed records exist on this disk only, see
    `log.seal_age_s`. Default: copy nothing."""
    publish_options: str | None = None
    """TOML file with options of the store, under the names of the package obstore: `endpoint`, `region`,
    `access_key_id`, ...; `[client_options]` are those of its client, for example `allow_http`. The server reads the
    file again after each failure, so that credentials may change. None: all options come from the environment."""
    publish_keep_local: bool = True
    """Whether published segments also stay here. If not, the server removes each one once it has read the published
    copy back whole and its records answer no more retries (`replay_window_s`), except the newest one and those of
    snapshots. The local log is then incomplete for everything that reads the folder."""
    publish_timeout_s: Seconds = 60.0
    """Time limit of one upload."""
    publish_close_s: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    """How long a shutdown may go on publishing; the next start publishes the rest."""
    retain_days: Annotated[float, Meta(ge=0.000_001, le=36_500)] | None = None
    """The server removes sealed records older than so many days with their feedback, a day's file at a time, except
    those that snapshots pin. None: it keeps them for ever."""
    retain_bytes: Bytes | None = None
    """The server removes the oldest sealed files beyond so many bytes of them, except those that snapshots pin.
    None: never."""


class LogFormat(StrEnum):
    """Of the server's own lines on stderr."""

    HUMAN = "human"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What the server tells of itself beside its metrics."""

    log_format: LogFormat = LogFormat.HUMAN
    """Write lines on stderr for people, or one JSON object each."""
    tracing: bool = False
    """Trace each call with OpenTelemetry. Its own OTEL_ variables set the destination."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything `bon serve` needs to know."""

    listen: ListenConfig = field(default_factory=ListenConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    defaults: DefaultsConfig = field(default_factory=DefaultsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)


def load(
    file: Path | None = None, environment: Mapping[str, str] = os.environ, flags: Mapping[str, Any] | None = None
) -> Config:
    """Reads and merges the sources. `flags` maps `section.key` to a value. Raises `ConfigError`."""
    config = read_settings(Config, file, environment, flags or {})
    _refuse_contradictions(config)
    return config


def _refuse_contradictions(config: Config) -> None:
    limits, defaults = config.limits, config.defaults
    if limits.max_n > limits.max_candidates_in_flight:
        raise ConfigError(
            f"limits.max_n = {limits.max_n} is above limits.max_candidates_in_flight = "
            f"{limits.max_candidates_in_flight}: such a request could never start"
        )
    if limits.max_message_bytes > limits.max_bytes_in_flight:
        raise ConfigError(
            f"limits.max_message_bytes = {limits.max_message_bytes} is above limits.max_bytes_in_flight = "
            f"{limits.max_bytes_in_flight}: no message could be received"
        )
    if defaults.n > limits.max_n:
        raise ConfigError(f"defaults.n = {defaults.n} is above limits.max_n = {limits.max_n}")
    policy = config.policy
    if policy.restarts and policy.watch is not None:
        raise ConfigError(
            f"policy.restarts = {policy.restarts} with policy.watch = {policy.watch!r}: the weights in use may be gone "
            "from that folder when they are needed again; leave one of the two out"
        )
    if len(config.reward.models) == 1:
        _refuse_ensemble_settings(config.reward)
    if config.log.publish is None and not config.log.publish_keep_local:
        raise ConfigError("log.publish_keep_local = false without log.publish: segments would be nowhere")


def _refuse_ensemble_settings(reward: RewardConfig) -> None:
    unset = RewardConfig()
    for key in ("combine", "weights", "std_factor"):
        given = getattr(reward, key)
        if given != getattr(unset, key):
            raise ConfigError(f"reward.{key} = {given!r} is of several reward models, and reward.models has only one")
