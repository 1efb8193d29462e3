"""A server's run as the operator sees it: from the banner to the first signal, or what broke first, to an exit code.

The banner says models, log, address, security, and one line to try.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from bon_server import __version__
from bon_server.config.security import SecurityConfig, is_loopback
from bon_server.serving.lifecycle.server import Server


def banner(server: Server) -> str:
    """Several lines of plain text."""
    policy, recovery = server.policy.ref, server.spool.recovery
    listen, security = server.config.listen, server.config.security
    metrics_tls = security.tls_cert is not None and not is_loopback(listen.metrics_host)
    lines = [
        f"bon-server {__version__}",
        f"  policy    {policy.id}  revision {policy.revision[:12]}  {_listed(server.policy.facts)}",
        *([f"  watching  {server.config.policy.watch}"] if server.config.policy.watch else []),
        *(
            f"  reward    {ref.name}: {ref.id}  revision {ref.revision[:12]}  {_listed(server.reward_model.facts)}"
            for ref in server.reward_model.refs
        ),
        f"  log       {server.config.log.directory}  durability {server.config.log.durability}  {recovery}",
        *([f"  publish   {server.config.log.publish}"] if server.config.log.publish else []),
        f"  gRPC      {server.address}  {_security(listen.host, security)}",
        f"  metrics   http{'s' if metrics_tls else ''}://{server.metrics_address}/metrics",
        "",
        f'  try:  bon ask "What is 7 + 5?" --all {_credentials(security)}--target {server.address}',
    ]
    return "\n".join(lines)


def _listed(facts: Mapping[str, str | int]) -> str:
    return "  ".join(f"{name.removesuffix('_bytes')} {_readable(name, value)}" for name, value in facts.items())


def _readable(name: str, value: str | int) -> str:
    return f"{value / (1 << 20):,.0f} MiB" if name.endswith("_bytes") and isinstance(value, int) else str(value)


def _security(host: str, security: SecurityConfig) -> str:
    parts = [
        "plain text" if security.tls_cert is None else "TLS" if security.tls_client_ca is None else "mutual TLS",
        "no keys" if security.api_keys is None else f"keys of {security.api_keys}",
        f"reachable from {'this machine only' if is_loopback(host) else 'other machines'}",
    ]
    if not is_loopback(host) and None in (security.tls_cert, security.api_keys):
        parts.append("SO SOMETHING THAT AUTHENTICATES MUST BE IN FRONT")
    return ", ".join(parts)


def _credentials(security: SecurityConfig) -> str:
    """The options that `bon ask` needs."""
    tls = "" if security.tls_cert is None else "--tls-ca CA.pem "
    tls += "" if security.tls_client_ca is None else "--tls-cert MINE.pem --tls-key MINE.key "
    return tls + ("" if security.api_keys is None else "--api-key-file KEY ")


logger = logging.getLogger(__name__)

WATCH_S = 0.25
"""How often the engines and the log are asked whether they still work."""
EXIT_S = 5.0
"""How long the interpreter may take to end after the server has."""
BROKEN_GRACE_S = 1.0
"""How long running calls may take once an engine or the log is broken."""

Signals = asyncio.Queue[signal.Signals]


def catch_signals() -> Signals:
    """Signals to end go into the queue from now on. Call it before anybody is told that the server answers.

    SIGHUP says that the terminal is gone; who starts the server with `nohup` has it ignored, and it stays so.
    """
    signals: Signals = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    return signals


async def run_until_signalled(server: Server, signals: Signals) -> int:
    """Serves until there is a signal, or until engine or log break. Returns the exit code: 0 or 1.

    The first signal drains, a second one stops at once the calls that still run.
    """
    with _watchdog(server.config.limits.loop_stall_s) as alive:
        told_to_stop = await _signalled(server, signals, alive)
    if told_to_stop:
        logger.info("draining: %d calls are running", server.attempts.running)
        await _drain_until_hurried(server, signals)
    else:
        logger.error("stopping: %s", server.broken)
        if server.hung:
            faulthandler.dump_traceback()  # names of functions and numbers of lines: nothing of what was said
        await server.drain(BROKEN_GRACE_S)
    await server.stop()
    return 0 if told_to_stop else 1


@contextmanager
def _watchdog(stall_s: float) -> Iterator[Callable[[], None]]:
    """Ends the process with code 1, stacks first, when what is yielded was not called for `stall_s` seconds.

    It has a thread of its own that needs no interpreter lock, so it also notices a lock that is never given back.
    """
    armed_s = -math.inf

    def alive() -> None:
        nonlocal armed_s
        if time.monotonic() - armed_s > stall_s / 10:  # each time costs a thread
            faulthandler.dump_traceback_later(stall_s, exit=True)
            armed_s = time.monotonic()

    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_soon(code: int) -> None:
    """The process ends within `EXIT_S` seconds from now, with this code. Call it once everything of ours is closed.

    Python joins threads before it ends, so a forward pass or a library's call that never returns would keep the
    process for ever. Only what is left to the interpreter is cut short: calls are answered and the log is closed.
    """

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(code)

    timer = threading.Timer(EXIT_S, end)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(2 * EXIT_S, exit=True)  # where a thread keeps the interpreter's lock


async def _signalled(server: Server, signals: Signals, alive: Callable[[], None]) -> bool:
    """Waits for a signal; False when the server broke instead."""
    while server.broken is None:
        alive()
        with suppress(TimeoutError):
            await asyncio.wait_for(signals.get(), WATCH_S)
            return True
    return False


async def _drain_until_hurried(server: Server, signals: Signals) -> None:
    draining = asyncio.create_task(server.drain(server.config.limits.drain_s))
    hurried = asyncio.create_task(signals.get())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    if hurried.done():
        await server.attempts.drain(0)
    hurried.cancel()
    await draining
