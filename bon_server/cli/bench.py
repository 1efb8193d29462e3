"""`bon bench`: measurements that are part of the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import bon
import typer
from rich.table import Table

from bon_server.cli.options import AllowInsecure, ApiKeyFile, AsJson, Concurrency, Tls, TlsCa, TlsCert, TlsKey
from bon_server.terminal import Terminal, print_json, styled

app = typer.Typer(help="Measure a server.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure a server."""


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.02, help="Of traffic; the first fifth, at most 3, warms up.")] = 30.0,
    concurrency: Concurrency = 32,
    cancel_share: Annotated[float, typer.Option(min=0, max=1, help="Of the calls, those whose caller leaves.")] = 0.2,
    memory_limit: Annotated[float, typer.Option(help="Growth of the server's memory, in MB a minute.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what callers do.")] = 0,
    target: Annotated[
        str | None, typer.Option(help="A server that runs. Default: one of its own, with synthetic models.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Metrics of the target, as HOST:PORT.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Log of the target, if on this machine; or where its own server's is to stay.")
    ] = None,
    as_json: AsJson = False,
    api_key_file: ApiKeyFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Mixed traffic for a long time; then whether anything leaked, was lost, or ended otherwise than promised.

    Exit 1 when a check fails.
    """
    from bon_server.soak.run import run_soak
    from bon_server.soak.seen import SoakOptions

    options = SoakOptions(
        minutes=minutes,
        concurrency=concurrency,
        cancel_share=cancel_share,
        seed=seed,
        memory_limit_mb_per_min=memory_limit,
        target=target,
        metrics=metrics,
        log=log,
        security=bon.Security(
            api_key_file=api_key_file,
            tls=tls,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            allow_insecure=allow_insecure,
        ),
    )
    with _telling() as tell:
        told = run_soak(options, tell)
    if as_json:
        print_json(told)
    else:
        _show(told)
    if not told["ok"]:
        raise typer.Exit(1)


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """On stderr: one line that changes or, where that is no terminal, one after the other."""
    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield console.print
        return
    with console.status("") as status:
        yield lambda said: status.update(styled(said))


def _show(told: dict[str, Any]) -> None:
    marks = {True: styled(("ok", "green")), False: styled(("!!", "red")), None: styled("--")}
    table = Table("", "check", "figure", "limit", "detail", box=None)
    for check in told["checks"]:
        figure = "" if check["figure"] is None else f"{check['figure']:.4g}"
        table.add_row(marks[check["passed"]], check["name"], figure, check["limit"], check["detail"])
    console = Terminal()
    console.print(table)
    console.print(
        f"{told['calls']:,} calls in {told['seconds']:.0f} s, {told['acknowledged']:,} ids acknowledged, "
        f"{told['replayed']:,} answers replayed, {told['feedback']:,} observations"
    )
    if "folder" in told:
        console.print(f"log and lines of the server: {told['folder']}")
