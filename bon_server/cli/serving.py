"""Verbs of a server: `bon serve`, `bon health`, `bon doctor`."""

from __future__ import annotations

import dataclasses
import gc
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from bon_server.cli.options import ACCESS, DEFAULT_TARGET, AsJson, ConfigFile, Encryption, Settings, Target
from bon_server.cli.settings import given, settings_flags
from bon_server.config.options import FLAT, PositiveNumber, panel
from bon_server.config.settings import Config, load, parse_assignments
from bon_server.system.terminal import Terminal, print_json, say, say_if_heard, styled

MODELS = {"policy.model": "--policy", "reward.models": "--reward", "log.directory": "--log"}
SERVER = {
    **MODELS,
    "policy.watch": "--watch-policy",
    "log.publish": "--publish",
    "listen.host": "--host",
    "listen.port": "--port",
    "listen.metrics_host": "--metrics-host",
    "listen.metrics_port": "--metrics-port",
    "listen.ready_file": "--ready-file",
    "telemetry.log_format": "--log-format",
    "telemetry.tracing": "--tracing",
}
CALLERS = {
    "security.tls_cert": "--tls-cert",
    "security.tls_key": "--tls-key",
    "security.tls_client_ca": "--tls-client-ca",
    "security.api_keys": "--api-keys",
    "security.allow_insecure": "--allow-insecure",
}
PATHS = ("log.directory", "policy.watch", "listen.ready_file", *CALLERS.keys() - {"security.allow_insecure"})

if TYPE_CHECKING:
    ModelFlags = object
    ServerFlags = object
    CallerFlags = object
else:
    ModelFlags = settings_flags(MODELS, PATHS)
    ServerFlags = settings_flags(SERVER, PATHS)
    CallerFlags = settings_flags(CALLERS, PATHS, panel("Who may call"))


def serve(
    *,
    flags: Annotated[ServerFlags, FLAT] = ServerFlags(),
    callers: Annotated[CallerFlags, FLAT] = CallerFlags(),
    config: ConfigFile = None,
    settings: Settings = (),
) -> None:
    """Serve best-of-N until SIGTERM, SIGINT or SIGHUP."""
    from bon_server.serving.telemetry import log_lines

    settled = load(config, flags={**given(flags), **given(callers), **parse_assignments(settings)})
    log_lines.set_up(settled.telemetry.log_format)
    import uvloop  # an event loop that takes a tenth less of a busy server's time; vLLM's own server runs on it too

    raise SystemExit(uvloop.run(_serve(settled)))


async def _serve(config: Config) -> int:
    from bon_server.serving.lifecycle.server import Server, write_ready_file
    from bon_server.serving.lifecycle.signals import banner, catch_signals, end_soon, run_until_signalled

    server = await Server.start(config)
    gc.collect()
    gc.freeze()  # models and libraries stay: vLLM and transformers alone are 680,000 objects, 0.2 to 0.5 s at a time
    # Calls leave few cycles, with nothing in them of what was said; looking took 6 % of the event loop's time.
    gc.set_threshold(20_000)
    signals = catch_signals()
    say_if_heard(banner(server))
    write_ready_file(server)
    code = await run_until_signalled(server, signals)
    end_soon(code)
    return code


def health(
    *,
    target: Target = DEFAULT_TARGET,
    service: Annotated[str, Parameter(help="Ask about this service. Default: the server as a whole.")] = "",
    alive: Annotated[bool, Parameter(help="Exit 0 whatever the server says, as long as it answers.")] = False,
    timeout: Annotated[PositiveNumber, Parameter(help="Wait so many seconds for the answer.")] = 5.0,
    encryption: Annotated[Encryption, FLAT] = Encryption(),
    tls_name: Annotated[
        str | None,
        ACCESS,
        Parameter(help="Expect this name in the server's certificate. Default: the target's."),
    ] = None,
) -> None:
    """Ask a server whether it can take new work; exit 0 when it can, else 1. Needs no key."""
    from bon_server.cli import probe

    said = probe.health(target, service=service, timeout_s=timeout, tls_name=tls_name, **encryption.security())
    say(said)
    if said.startswith(probe.NOT_REACHED) or (said != probe.SERVING and not alive):
        raise SystemExit(1)


def doctor(
    *,
    flags: Annotated[ModelFlags, FLAT] = ModelFlags(),
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = (),
) -> None:
    """Check this machine for what bon serve would need with the same options; exit 1 when something needs attention."""
    from bon_server.cli.examine import examine

    findings = examine(load(config, flags={**given(flags), **parse_assignments(settings)}))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        table = Table("", "check", "finding", box=None)
        for finding in findings:
            mark = styled(("ok", "green") if finding.ok else ("!!", "red"))
            table.add_row(mark, finding.check, finding.detail)
        Terminal().print(table)
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)
