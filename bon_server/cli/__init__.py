"""`bon`: one function per verb. Each parses its words, calls what does the work, and prints.

Exit codes: 0 done, 1 failed, 2 usage. With `--json` one JSON document and nothing else goes to stdout.
"""

from __future__ import annotations

import bon
import grpc
import typer

from bon_server import __version__
from bon_server.cli import asking, bench, demo, evaluate, keys, log, offline, rescore, rounds, serving, training
from bon_server.cli.bounded import bound
from bon_server.cli.show import fail
from bon_server.errors import BonError, ConfigError
from bon_server.terminal import let_go_of_streams, prepare_streams, say

app = typer.Typer(
    help="Best-of-N over gRPC, with a log of every scored candidate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serving.serve)
app.command()(asking.ask)
app.command()(asking.harvest)
app.add_typer(log.app, name="log")
app.command()(offline.select)
app.command()(rescore.rescore)
app.command()(training.train)
app.command()(rounds.rounds)
app.add_typer(evaluate.app, name="evaluate")
app.command()(evaluate.report)
app.command()(serving.health)
app.command()(serving.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
app.add_typer(demo.app, name="demo")


def main() -> None:
    """Entry point. Turns expected errors into one sentence on stderr and an exit code."""
    prepare_streams()
    try:
        app()
    except ConfigError as error:
        fail(str(error), 2)
    except bon.SecurityError as error:
        fail(str(error), 2)
    except BonError as error:
        fail(str(error), 1)
    except grpc.RpcError as error:
        fail(bon.describe(error), 1)
    except UnicodeEncodeError as error:  # Python reads such bytes of the command line as halves of characters
        fail(f"an argument or the name of a file is not UTF-8 ({error.reason}, character {error.start + 1})", 2)
    except OSError as error:
        fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        fail("interrupted", 1)
    finally:
        let_go_of_streams()


@app.command()
def version() -> None:
    """Print the version."""
    say(__version__)


bound(app)
