"""Rewards by a function of the operator's: `function:module:name`.

    def reward(*, prompt: str, completion: str, context: Mapping[str, str]) -> float

It is called with keyword arguments. `prompt` is a text prompt as it is, the content of a single user message, or lines
`role: content` for a longer chat; `context` is the request's `reward_context`, for example a reference answer. Plain
functions run in threads, several at a time; `async` ones on the event loop, which they must not block. A completion
whose reward is not a number, or for which the function raises, is marked FAILED; the others are not affected.

The module is looked for as `python -m` would: in the current directory first. It is the operator's own code and runs
with the server's rights.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any

from bon_server.engine.telemetry import Telemetry
from bon_server.errors import StartupError
from bon_server.reward.pairs import prompt_text
from bon_server.specs import import_module
from bon_server.types import CandidateStatus, ModelRef, Prompt, Score

logger = logging.getLogger(__name__)

THREADS = 8
"""Calls of a plain function that run at the same time."""


class FunctionReward:
    """A `RewardModel` that calls a function for each completion."""

    def __init__(self, function: Callable[..., Any], spec: str, revision: str, name: str = "default") -> None:
        self._function = function
        self._spec = spec
        self._on_loop = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is async
        )
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=f"reward-{name}")
        self.refs = (ModelRef(name, spec, revision),)
        self.facts: Mapping[str, str | int] = {"called": "on the event loop" if self._on_loop else "in threads"}
        self.engines: tuple[Telemetry, ...] = ()
        self.healthy = True

    @classmethod
    def from_spec(cls, spec: str, name: str = "default") -> FunctionReward:
        """From `function:module:name`. Raises StartupError: no such module or function, or it cannot be called so."""
        kind, _, place = spec.partition(":")
        module_name, _, function_name = place.partition(":")
        if kind != "function" or not module_name or not function_name or ":" in function_name:
            raise StartupError(f"reward {spec!r}: expected function:module:name")
        module = import_module(f"reward {spec!r}", module_name)
        function = getattr(module, function_name, None)
        if function is None:
            raise StartupError(f"reward {spec!r}: the module {module_name} has no {function_name!r}")
        _check_call(spec, function)
        return cls(function, spec, _source_digest(spec, module, function), name)

    async def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Score:
        """See `RewardModel.score`; never raises RewardFailed, since a function fails for one completion at a time."""
        arguments = {"prompt": prompt_text(prompt), "completion": completion, "context": dict(context)}
        if self._on_loop:
            return await self._await_score(self._function, arguments)
        score = await asyncio.get_running_loop().run_in_executor(self._threads, self._call, arguments)
        # A plain function may still hand back something to wait for, for example a lambda around an async one.
        return score if isinstance(score, Score) else await self._await_score(lambda: score, {})

    async def close(self) -> None:
        """Drops calls that have not begun; one that never returns cannot be ended from outside."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        """In a thread: a `Score`, or the awaitable that the function returned.

        Everything is caught here: a StopIteration, for one, could not leave the thread, and its caller would wait
        forever; a SystemExit would end the server; a CancelledError would look like the caller's.
        """
        try:
            value = self._function(**arguments)
        except BaseException as error:  # noqa: BLE001 - the operator's code may raise anything
            return self._raised(error)
        return value if inspect.isawaitable(value) else as_score(value)

    async def _await_score(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Score:
        try:
            return as_score(await function(**arguments))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._raised(error)  # nobody cancelled this score: it came out of the function
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the operator's code may raise anything
            return self._raised(error)

    def _raised(self, error: BaseException) -> Score:
        """The log gets the place and the kind, never the message, which may quote the completion."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        logger.warning("%s raised %s at %s:%s", self._spec, type(error).__name__, Path(last.filename).name, last.lineno)
        return Score(CandidateStatus.FAILED, error=type(error).__name__)


def as_score(value: object) -> Score:
    """A number is a reward (True is 1); NaN and infinities are NON_FINITE; anything else is FAILED, naming its type."""
    if not isinstance(value, Real):
        return Score(CandidateStatus.FAILED, error=f"the function returned {type(value).__name__}, not a number")
    try:
        reward = float(value)
    except OverflowError:
        return Score(CandidateStatus.NON_FINITE)
    return Score(CandidateStatus.SCORED, reward) if math.isfinite(reward) else Score(CandidateStatus.NON_FINITE)


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
