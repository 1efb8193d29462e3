"""`bon bench`: measurements that are part of the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import App
from rich.table import Table

from bon_server.cli.options import Access, AsJson
from bon_server.config.options import FLAT
from bon_server.loop.soak.options import SoakOptions
from bon_server.system.terminal import Terminal, print_json, styled

app = App(name="bench", help="Measure a server.")


@app.command
def soak(
    *,
    options: Annotated[SoakOptions, FLAT] = SoakOptions(),
    as_json: AsJson = False,
    access: Annotated[Access, FLAT] = Access(),
) -> None:
    """Send mixed traffic for a long time, and check that nothing leaked, was lost, or ended otherwise than promised.

    Exit 1 when a check fails.
    """
    from bon_server.loop.soak.run import run_soak

    with _telling() as tell:
        told = run_soak(options, access.security(), tell)
    if as_json:
        print_json(told)
    else:
        _show(told)
    if not told["ok"]:
        raise SystemExit(1)


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
