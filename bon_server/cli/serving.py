"""Verbs of a server: `bon serve`, `bon doctor`."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bon_server.cli.options import AsJson, ConfigFile, Settings
from bon_server.cli.show import text
from bon_server.config import Config, load, parse_assignments


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
    metrics_port: Annotated[int | None, typer.Option(help="Metrics port; 0 takes a free one.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written, with the addresses, once the server answers.")
    ] = None,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Serve best-of-N until SIGTERM or SIGINT."""
    flags = {
        "policy.model": policy,
        "reward.models": reward or None,
        "policy.watch": text(watch_policy),
        "log.directory": text(log),
        "log.publish": publish,
        "listen.host": host,
        "listen.port": port,
        "listen.metrics_port": metrics_port,
        "listen.ready_file": text(ready_file),
        **parse_assignments(settings),
    }
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    import uvloop  # an event loop that takes a tenth less of a busy server's time; vLLM's own server runs on it too

    raise typer.Exit(uvloop.run(_serve(load(config, flags=flags))))


async def _serve(config: Config) -> int:
    from bon_server.serving.banner import banner
    from bon_server.serving.server import Server, catch_signals, run_until_signalled, write_ready_file

    server = await Server.start(config)
    gc.collect()
    gc.freeze()  # models and libraries stay: vLLM and transformers alone are 680,000 objects, 0.2 to 0.5 s at a time
    signals = catch_signals()
    print(banner(server), flush=True)  # noqa: T201
    write_ready_file(server)
    return await run_until_signalled(server, signals)


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
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))  # noqa: T201
    else:
        table = Table("", "check", "finding", box=None)
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[red]!![/]", finding.check, finding.detail)
        Console().print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
