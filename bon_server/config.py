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

from bon_server.config_sources import parse_assignments as parse_assignments
from bon_server.config_sources import read_settings
from bon_server.errors import ConfigError
from bon_server.security import SecurityConfig
from bon_server.types import Durability

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Address of the gRPC port. Loopback unless you say otherwise."""
    port: Port = 50051
    """gRPC port; 0 takes a free one (see `ready_file`)."""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics endpoint. On another than loopback it wants TLS, and a key with the right `admin`."""
    metrics_port: Port = 9464
    """Port of the metrics endpoint; 0 takes a free one."""
    ready_file: str | None = None
    """Written, with the addresses as JSON, once the server answers. None: no file."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The language model that is sampled."""

    model: str = ""
    """Directory, hub id, or `synthetic[:key=value,...]`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; for a directory, the digest that its weights must have. None: any."""
    dtype: str = "auto"
    """`bfloat16`, `float16`, `float32`, or `auto`: the model's own; but float32 on CPUs without bf16 instructions, and
    half precision on GPUs for models in float32 (vLLM's rule)."""
    context_tokens: Positive | None = None
    """Longest prompt plus completion. None: the model's own. Less needs less memory."""
    running_samples: Positive = 128
    """Candidates decoded at the same time; more wait their turn in the engine."""
    kv_cache_bytes: Positive | None = None
    """Memory for attention keys and values. None: on a CPU 1 GiB, on a GPU what `gpu_memory_share` leaves. On a GPU the
    share has to be free all the same, and a larger cache goes beyond it."""
    gpu_memory_share: Annotated[float, Meta(gt=0, le=1)] = 0.7
    """Share of a GPU's memory that the engine may take; the reward model needs the rest. Not used on a CPU."""
    gpus: Positive = 1
    """GPUs that the model is split over (tensor parallelism). Not used on a CPU."""
    data_parallel: Positive = 1
    """Copies of the model that share the candidates (data parallelism), each on `gpus` GPUs of its own and with so many
    `running_samples` and so large a cache. Not used on a CPU."""
    cpus: str = "all"
    """CPUs the engine computes on: `all` this process may use, or a list such as `0-3,8`. Not used on a GPU."""
    engine_metrics: bool = True
    """Whether vLLM's own metrics are kept; they take about 14 µs of the server's processor time for each token. Whether
    the engine makes progress is seen without them too."""
    constraint_trial_ms: Positive = 250
    """Processor time that compiling a constraint and trying it on 64 tokens may take; beyond it is refused."""
    seed: int | None = None
    """Seed of the engine for candidates without one. None: random, so that a restart samples anew."""
    watch: str | None = None
    """Folder whose newest checkpoint is loaded while serving; the old weights stay until the new ones are tested, so
    there must be memory for both. None: the weights of the start."""
    watch_poll_s: PositiveSeconds = 2.0
    """How often that folder is looked at; a checkpoint is taken once it is the same at two looks."""
    watch_drain_s: PositiveSeconds = 600.0
    """How long requests may go on with replaced weights; what is not done then is UNAVAILABLE, to be tried again."""
    restarts: Annotated[int, Meta(ge=0)] = 0
    """How many times in a row an engine that died, or made no step for `limits.engine_stall_s`, is started anew inside
    the server, which refuses what has to be sampled meanwhile. 0: the server ends. Not together with `watch`."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The model or function that scores."""

    models: tuple[str, ...] = ()
    """Directory or hub id (transformers), `vllm:` and one of these (a vLLM engine of its own),
    `function:module:name` or `synthetic[:key=value,...]`; `name=` in front names it."""
    revision: str | None = None
    """Hub revision; None: the hub's default branch."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`. Half precision quantises rewards and makes ties."""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`. Not used with `vllm:`, which computes where the policy
    does."""
    context_tokens: Positive | None = None
    """Longest prompt plus completion; longer ones get no reward. None: the model's own. Less needs less memory."""
    batch_tokens: Positive = 4096
    """Tokens in one forward pass, padding included."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU only, transformers only: threads of a forward pass; 0: torch's default."""
    share_prompts: bool | None = None
    """Whether a decoder runs a prompt once for all its completions. None: on a CPU, where large batches gain little.
    With `vllm:` it always does, in blocks."""
    kv_cache_bytes: Positive | None = None
    """`vllm:` only: memory for attention keys and values, of each such model; it must hold one input of
    `context_tokens`. None: on a CPU 1 GiB, on a GPU what `gpu_memory_share` leaves. Encoders keep none."""
    gpu_memory_share: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """`vllm:` only: share of a GPU's memory that each such engine may take. Not used on a CPU."""
    cpus: str = "all"
    """`vllm:` only: CPUs the engine computes on, `all` or a list as in `policy.cpus`. Not used on a GPU."""
    engine_metrics: bool = True
    """`vllm:` only: whether vLLM's own metrics are kept, as `policy.engine_metrics`."""
    combine: str = "mean"
    """Several models: the reward is their weighted `mean`, their `min`, or `mean-minus-k-std`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Several models: weight of each by its name, above 0; those not named have 1. `min` does not take any."""
    std_factor: Annotated[float, Meta(ge=0)] = 1.0
    """k of `mean-minus-k-std`, which distrusts what the models disagree on."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a request, and all requests together, may ask for."""

    max_n: Positive = 128
    """Highest `n`."""
    max_prompt_tokens: Positive | None = None
    """Longest prompt; None: what the policy's context allows."""
    max_message_bytes: Positive = 4 << 20
    """Largest gRPC message, both ways."""
    max_metadata_bytes: Positive = 16 << 10
    """Largest gRPC metadata."""
    max_bytes_in_flight: Positive = 256 << 20
    """Bytes of requests in memory, over all callers. A call reserves `max_message_bytes` until its message has arrived,
    and then holds the true size until it is answered. One that finds no room for `max_queue_s` is refused."""
    slow_sender_s: PositiveSeconds = 30.0
    """A call whose message has not arrived after so long is ended."""
    max_connections: Positive = 4096
    """Connections at once; less where the limit of descriptors (`ulimit -n`) leaves less. More are closed at once."""
    handshake_s: PositiveSeconds = 10.0
    """A connection on which TLS and HTTP/2 have not begun to speak after so long is closed."""
    idle_connection_s: PositiveSeconds = 300.0
    """A connection without a call is closed after so long; gRPC's clients make another when they need it."""
    max_constraint_bytes: Positive = 64 << 10
    """Largest JSON schema, or all choices together."""
    max_schema_depth: Positive = 32
    """How deeply a JSON schema may nest objects and lists."""
    max_schema_values: Positive = 4096
    """Most values in a JSON schema, of whatever kind."""
    max_regex_bytes: Positive = 4096
    """Longest regular expression."""
    max_choices: Positive = 1024
    """Most choices of one request."""
    max_candidates_in_flight: Positive = 512
    """Candidates being sampled or scored at once, over all callers."""
    max_candidates_queued: Annotated[int, Meta(ge=0)] = 2048
    """Candidates waiting for a permit; beyond this a request is refused at once."""
    max_queue_s: PositiveSeconds = 1.0
    """A request waits only if it should start within so many seconds, or within half the time that requests take
    lately if that is longer; otherwise it is refused at once."""
    max_queue_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of `max_candidates_queued` that one caller may fill: a principal or, without keys, a connection."""
    retry_after_ms: Positive = 500
    """Pushback sent with refusals that may be tried again."""
    default_deadline_s: PositiveSeconds = 600.0
    """Deadline of calls that set none."""
    deadline_margin_ms: Annotated[int, Meta(ge=0)] = 100
    """Kept free before a deadline for stopping, choosing, committing and answering; more where that took longer
    lately."""
    slow_reader_s: PositiveSeconds = 60.0
    """A stream from which nothing is read for so long is ended; a retry with its request id gets the stored answer."""
    engine_stall_s: PositiveSeconds = 120.0
    """An engine that makes no step for so long, while it has work, has hung: health says NOT_SERVING, and the server
    ends with an error. Must be more than the longest step, which on a CPU is that of a whole prompt."""
    loop_stall_s: Annotated[float, Meta(ge=1, le=1_000_000)] = 120.0
    """A server that is itself stuck for so long prints the stacks of its threads and ends with an error. A process that
    is stopped (`docker pause`, a debugger) counts as stuck; a machine that sleeps does not."""
    drain_s: PositiveSeconds = 30.0
    """How long running calls may take to finish after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class DefaultsConfig:
    """What a request leaves unset."""

    n: Positive = 16
    """Number of candidates."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.8
    """Softmax temperature."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Nucleus sampling. On CPU values below 1 cost about 30 % of the throughput."""
    max_tokens: Positive = 256
    """Longest completion; less where the prompt leaves less."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where and how records are kept."""

    directory: str = ""
    """Folder of the log; made when missing."""
    durability: Durability = Durability.FSYNC
    """What OK promises. `fsync`: the record was synced to disk before the answer left; each sync takes along what came
    during the one before. `group`: the same promise, and a record waits `linger_ms` for others to share its sync.
    `async`: the record was handed to the kernel: safe when the server is killed, but a crash of the machine loses what
    came since the last sync, see `async_sync_ms`. Every answer says which."""
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 2.0
    """Durability `group`: how long a record waits for company. Fewer syncs, and every answer so much later."""
    group_records: Positive = 256
    """Most records in one transaction, that is, of one sync."""
    async_sync_ms: Annotated[float, Meta(gt=0, le=60_000)] = 200.0
    """Durability `async`: time between syncs; what a power cut can cost, plus the time a sync and a checkpoint take."""
    queue_bytes: Positive = 64 << 20
    """Encoded records waiting to be committed; beyond this new requests are refused before they are sampled."""
    min_free_bytes: Annotated[int, Meta(ge=0)] = 256 << 20
    """Below so much free space on the log's disk new requests are refused before they are sampled; looked at every
    second. What is being answered then is still logged, so leave room for it."""
    allow_metadata_only: bool = True
    """Whether a request may ask that its prompt and completions are not logged."""
    allow_none: bool = True
    """Whether a request may ask that nothing of it is logged."""
    redact: str | None = None
    """`module:function`, given each text before it is logged; it returns the text to log. None: texts as they are."""
    seal_bytes: Positive = 64 << 20
    """Records go from the spool into a segment once there are so many bytes of them; also a segment's size before
    compression."""
    seal_age_s: PositiveSeconds = 3600.0
    """Or once the oldest of them is so old."""
    seal_on_shutdown: bool = True
    """Whether a clean shutdown seals what is left."""
    replay_window_s: Annotated[float, Meta(ge=0)] = 86400.0
    """How long after its sealing a record still answers retries of its request id, at least, unless it is removed
    before by one of the next two."""
    publish: str | None = None
    """Where sealed segments are copied to: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix`
    or `file:///folder`. Any number of servers may share one place. What is not sealed yet is on this disk only, see
    `seal_age_s`. None: nowhere."""
    publish_options: str | None = None
    """TOML file with options of the store, named as the package obstore names them: `endpoint`, `region`,
    `access_key_id`, ...; `[client_options]` are those of its client, for example `allow_http`. Read again after each
    failure, so that credentials may change. None: all from the environment."""
    publish_keep_local: bool = True
    """Whether published segments stay here too. If not, each is removed once it has been read back whole from where it
    was published and its records answer no retries any more (`replay_window_s`), but for the newest one and those of
    snapshots. The local log is then no longer complete: what reads a folder reads less."""
    publish_timeout_s: PositiveSeconds = 60.0
    """Time limit of one upload."""
    publish_close_s: Annotated[float, Meta(ge=0)] = 10.0
    """How long a shutdown may go on publishing; the next start does the rest."""
    retain_days: PositiveSeconds | None = None
    """Sealed records older than so many days are removed with their feedback, a day's file at a time, but for what
    snapshots pin. None: kept for ever."""
    retain_bytes: Positive | None = None
    """The oldest sealed files are removed beyond so many bytes of them, but for what snapshots pin. None: never."""


class LogFormat(StrEnum):
    """Of the server's own lines on stderr."""

    HUMAN = "human"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What the server tells of itself beside its metrics."""

    log_format: LogFormat = LogFormat.HUMAN
    """Lines on stderr for people, or one JSON object each."""
    tracing: bool = False
    """Whether each call is traced by OpenTelemetry; where to, its own OTEL_ variables say."""


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
