"""Verbs of a server: `bon serve`, `bon health`, `bon doctor`."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bon_server.cli.options import (
    DEFAULT_TARGET,
    TLS,
    AsJson,
    ConfigFile,
    Settings,
    Target,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
)
from bon_server.cli.show import text
from bon_server.config import Config, LogFormat, load, parse_assignments
from bon_server.terminal import Terminal, print_json, say, say_if_heard, styled

WHO = "Who may call"


def serve(
    policy: Annotated[str | None, typer.Option(help="Directory, hub id or synthetic[:key=value,...].")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="Directory or hub id, vllm: and one of these, function:module:name or synthetic[:...]; "
            "name=... in front names it."
        ),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Folder of the log; made when missing.")] = None,
    watch_policy: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints; the newest is loaded without a restart.")
    ] = None,
    publish: Annotated[
        str | None, typer.Option(help="Copy sealed segments to s3://..., gs://..., az://... or file:///...")
    ] = None,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address of the gRPC port.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one.")] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Address of the metrics port.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Metrics port; 0 takes a free one.")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate chain of the server.", rich_help_panel=WHO)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of it.", rich_help_panel=WHO)] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Callers must show a certificate of these authorities.", rich_help_panel=WHO)
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="Callers must have one of these keys; see bon keys new.", rich_help_panel=WHO)
    ] = None,
    allow_insecure: Annotated[
        bool | None,
        typer.Option(
            "--allow-insecure", help="Let other machines in without TLS or keys, with a warning.", rich_help_panel=WHO
        ),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written, with the addresses, once the server answers.")
    ] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Lines on stderr for people, or JSON.")] = None,
    tracing: Annotated[
        bool | None, typer.Option("--tracing", help="Trace calls; where to, the OTEL_ environment says.")
    ] = None,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Serve best-of-N until SIGTERM, SIGINT or SIGHUP."""
    flags = {
        "policy.model": policy,
        "reward.models": reward or None,
        "policy.watch": text(watch_policy),
        "log.directory": text(log),
        "log.publish": publish,
        "listen.host": host,
        "listen.port": port,
        "listen.metrics_host": metrics_host,
        "listen.metrics_port": metrics_port,
        "security.tls_cert": text(tls_cert),
        "security.tls_key": text(tls_key),
        "security.tls_client_ca": text(tls_client_ca),
        "security.api_keys": text(api_keys),
        "security.allow_insecure": allow_insecure,
        "listen.ready_file": text(ready_file),
        "telemetry.log_format": log_format,
        "telemetry.tracing": tracing,
        **parse_assignments(settings),
    }
    from bon_server.serving import log_lines

    settled = load(config, flags=flags)
    log_lines.set_up(settled.telemetry.log_format)
    import uvloop  # an event loop that takes a tenth less of a busy server's time; vLLM's own server runs on it too

    raise typer.Exit(uvloop.run(_serve(settled)))


async def _serve(config: Config) -> int:
    from bon_server.serving.banner import banner
    from bon_server.serving.server import Server, write_ready_file
    from bon_server.serving.signals import catch_signals, end_soon, run_until_signalled

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
    target: Target = DEFAULT_TARGET,
    service: Annotated[str, typer.Option(help="Service to ask about. Default: the server as a whole.")] = "",
    alive: Annotated[bool, typer.Option("--alive", help="Exit 0 whatever it says, as long as it answers.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: Annotated[
        str | None, typer.Option(help="Name in the server's certificate, if not the target's.", rich_help_panel=TLS)
    ] = None,
) -> None:
    """Ask a server whether it can take new work; exit 0 when it can, else 1. Needs no key."""
    from bon_server import probe

    said = probe.health(
        target,
        service=service,
        timeout_s=timeout,
        tls_name=tls_name,
        tls=tls,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    say(said)
    if said.startswith(probe.NOT_REACHED) or (said != probe.SERVING and not alive):
        raise typer.Exit(1)


def doctor(
    policy: Annotated[str | None, typer.Option(help="Policy whose memory to plan, as for bon serve.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Reward model whose memory to plan, as for bon serve; may be repeated.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Log folder to check too.")] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Check this machine; exit 1 when something needs attention."""
    from bon_server.doctor import examine

    flags = {"policy.model": policy, "reward.models": reward or None, "log.directory": text(log)}
    findings = examine(load(config, flags={**flags, **parse_assignments(settings)}))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        table = Table("", "check", "finding", box=None)
        for finding in findings:
            mark = styled(("ok", "green") if finding.ok else ("!!", "red"))
            table.add_row(mark, finding.check, finding.detail)
        Terminal().print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
