"""Rewards by a function: `function:module:name`.

    def reward(*, prompt: str, completion: str, context: Mapping[str, str]) -> float

The server calls it with keyword arguments. `prompt` is a text prompt as it is, the content of a single user message, or
lines `role: content` for a longer chat; `context` is the request's `reward_context`, for example a reference answer.

The function runs in `reward.processes` processes (see `operator_code/pool.py`): plain functions one call at a time in
each, `async` ones many at a time. A call that takes longer than `reward.timeout_s` is ended, and its completion is
FAILED with the error `timeout`; FAILED is also a completion whose reward is not a number, for which the function
raises, or whose process dies. The others are not affected. Calls share no memory but with calls of the same process.

The module is looked for as `python -m` would: in the current directory first. It is imported in the server too, to look
at the function's signature and file. It is the operator's own code and runs with the server's rights.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

from bon_server.config.settings import RewardConfig
from bon_server.config.specs import import_module
from bon_server.core.errors import RewardFailed, StartupError
from bon_server.core.types import CandidateStatus, ModelRef, Prompt, Score
from bon_server.models.reward.pairs import prompt_text
from bon_server.operator_code.messages import Answer, Setup
from bon_server.operator_code.pool import BROKEN, WorkerPool, default_processes
from bon_server.operator_code.worker import as_answer, is_async
from bon_server.system.telemetry import Telemetry

logger = logging.getLogger(__name__)


class FunctionReward:
    """A `RewardModel` that calls a function for each completion. Made by `from_spec`."""

    def __init__(self, pool: WorkerPool, spec: str, revision: str, name: str, processes: int) -> None:
        self._pool = pool
        self._spec = spec
        self.refs = (ModelRef(name, spec, revision),)
        self.facts: Mapping[str, str | int] = {"processes": processes, "timeout_s": f"{pool.setup.timeout_s:g}"}
        self.engines: tuple[Telemetry, ...] = (pool.telemetry,)

    @classmethod
    def from_spec(cls, spec: str, name: str = "default", config: RewardConfig | None = None) -> FunctionReward:
        """From `function:module:name`. Raises StartupError: no such module or function, or it cannot be called so.

        Starts no process yet: `start` or the first score does.
        """
        kind, _, place = spec.partition(":")
        module_name, _, function_name = place.partition(":")
        if kind != "function" or not module_name or not function_name or ":" in function_name:
            raise StartupError(f"reward {spec!r}: expected function:module:name")
        what = f"reward {spec!r}"
        module = import_module(what, module_name)
        function = getattr(module, function_name, None)
        if function is None:
            raise StartupError(f"reward {spec!r}: the module {module_name} has no {function_name!r}")
        _check_call(spec, function)
        config = config or RewardConfig()
        processes = config.processes or default_processes()
        setup = Setup(what, module_name, function_name, "number", config.timeout_s)
        pool = WorkerPool(setup, processes, is_async(function))
        return cls(pool, spec, _source_digest(spec, module, function), name, processes)

    @property
    def healthy(self) -> bool:
        """False once no process can be started any more."""
        return self._pool.failure is None

    async def start(self) -> None:
        """Starts the processes. Raises StartupError when the function cannot be loaded in them."""
        await self._pool.start()

    def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Awaitable[Score]:
        """See `RewardModel.score`. Raises RewardFailed when no process can be started; all else is one completion's."""
        arguments = {"prompt": prompt_text(prompt), "completion": completion, "context": dict(context)}
        return self._score(arguments)

    async def close(self) -> None:
        """Kills the processes, whatever they are at."""
        await self._pool.close()

    async def _score(self, arguments: Mapping[str, Any]) -> Score:
        answer = await self._pool.call(named=arguments)
        if answer.error == BROKEN:
            raise RewardFailed(self._pool.failure or BROKEN)
        if answer.place:
            logger.warning("%s raised %s at %s", self._spec, answer.error, answer.place)
        elif answer.error is not None:
            logger.warning("%s gave no reward: %s", self._spec, answer.error)
        return _as_score(answer)


def as_score(value: object) -> Score:
    """A number is a reward (True is 1); NaN and infinities are NON_FINITE; anything else is FAILED, naming its type."""
    return _as_score(as_answer(0, "number", value))


def _as_score(answer: Answer) -> Score:
    if not isinstance(answer.value, float):
        return Score(CandidateStatus.FAILED, error=answer.error)
    if not math.isfinite(answer.value):
        return Score(CandidateStatus.NON_FINITE)
    return Score(CandidateStatus.SCORED, answer.value)


def _check_call(spec: str, function: Any) -> None:
    if not callable(function):
        raise StartupError(f"reward {spec!r}: it is no function but a {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C without a signature: the first call will tell
    try:
        signature.bind(prompt="", completion="", context={})
    except TypeError as error:
        raise StartupError(
            f"reward {spec!r}: it must take the keyword arguments prompt, completion and context, not {signature}"
        ) from error


def _source_digest(spec: str, module: Any, function: Any) -> str:
    """Hex SHA-256 of the file that defines the function; what it imports in turn is not covered."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(function)) or module.__file__
    except (TypeError, AttributeError):
        path = getattr(module, "__file__", None)
    if path is None:
        raise StartupError(f"reward {spec!r}: it is in no file, so it would have no revision")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
