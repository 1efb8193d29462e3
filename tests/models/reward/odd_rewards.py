"""Reward functions that do what a function may do wrong, named `function:tests.models.reward.odd_rewards:NAME`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np


class Ending(BaseException):
    """No Exception."""


class Tensor:
    """Like a tensor: no number, though it could be made one."""

    def __float__(self) -> float:
        return 1.0


class Broken(float):
    """A number until somebody looks."""

    def __float__(self) -> float:
        raise Ending(str(self.real))


ERRORS: Mapping[str, type[BaseException]] = {
    error.__name__: error
    for error in (
        ValueError,
        StopIteration,
        RecursionError,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        Ending,
    )
}
VALUES: Mapping[str, object] = {
    "None": None,
    "str": "1.0",
    "dict": {"reward": 1.0},
    "Tensor": Tensor(),
    "array": np.array([1.0, 2.0]),
    "float32": np.float32(0.5),
    "nan": float("nan"),
    "large": 10**400,
    "broken": Broken(1.0),
}


def sleep() -> NoReturn:
    """Without an end."""
    while True:
        time.sleep(1)


def backtrack() -> object:
    """A regular expression that holds the interpreter's lock for years."""
    return re.match(r"(a+)+$", "a" * 64 + "b")


def c_loop() -> object:
    """C code that holds the interpreter's lock."""
    return ctypes.PyDLL(None).pause()


def segfault() -> object:
    """Kills its process."""
    return ctypes.string_at(0)


def with_child() -> NoReturn:
    """Hangs, and so does a program that it started."""
    subprocess.Popen(["sleep", "1000"])
    sleep()


ACTS: Mapping[str, Callable[[], object]] = {
    "sleep": sleep,
    "backtrack": backtrack,
    "c_loop": c_loop,
    "segfault": segfault,
    "with_child": with_child,
    "exit": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def _do(word: str) -> Any:
    """`sleep`, `raise ValueError`, `return None`; the length of anything else."""
    verb, _, what = word.partition(" ")
    if verb == "raise":
        raise ERRORS[what](word)
    if verb == "return":
        return VALUES[what]
    if verb == "print":
        print(what, flush=True)  # noqa: T201
        os.write(1, what.encode())
        sys.__stdout__.write(what)  # type: ignore[union-attr]
    if word in ACTS:
        return ACTS[word]()
    return float(len(word))


def plain(*, prompt: str, completion: str, context: object) -> Any:
    """Does as the completion says."""
    return _do(completion)


async def asynchronous(*, prompt: str, completion: str, context: Mapping[str, str]) -> Any:
    """Does as the completion says, or waits."""
    await asyncio.sleep(0)
    if completion == "wait":
        await asyncio.sleep(1000)
    if completion == "stubborn":
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue
    if completion == "together":  # until a second one is there
        path = context["path"]
        with open(path, "a") as file:  # noqa: ASYNC230, PTH123
            file.write("x")
        while os.path.getsize(path) < 2:  # noqa: ASYNC110, ASYNC240, PTH202
            await asyncio.sleep(0.001)
    if completion == "cancelled":
        try:
            await asyncio.sleep(1000)
        finally:
            with open(context["path"], "w") as file:  # noqa: ASYNC230, PTH123
                file.write("x")
    return _do(completion)


def waits(**given: Any) -> Any:
    """A plain function that gives something to wait for."""
    return asynchronous(**given)


class Scorer:
    """An object that can be called, asynchronously."""

    async def __call__(self, *, prompt: str, completion: str, context: object) -> float:
        return 7.0


scorer = Scorer()
