"""`bon`: one function per verb. Each parses its words, calls what does the work, and prints.

A verb's module is imported when the verb is called, or when its help is shown, and imports what does the work only when
it does it. Flags come from annotations: of a verb's own parameters, or of the dataclass of options that it takes.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. With `--json` one JSON document and nothing else goes to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.argument import ArgumentCollection

from bon_server import __version__
from bon_server.cli.show import as_default, fail
from bon_server.config.options import check_value
from bon_server.core.errors import BonError, ConfigError
from bon_server.system.terminal import let_go_of_streams, prepare_streams

if TYPE_CHECKING:
    import bon
    import grpc


def main(words: Sequence[str] | None = None) -> None:
    """Entry point. Turns expected errors into one sentence on stderr and an exit code.

    words: of the command line, without `bon`. None: those of this process.
    """
    prepare_streams()
    try:
        _run(list(sys.argv[1:] if words is None else words))
    except (CycloptsError, ConfigError) as error:
        fail(str(error), 2)
    except BonError as error:
        fail(str(error), 1)
    except UnicodeEncodeError as error:  # Python reads such bytes of the command line as halves of characters
        fail(f"an argument or the name of a file is not UTF-8 ({error.reason}, character {error.start + 1})", 2)
    except OSError as error:
        fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)  # as shells have it: 128 and the number of the signal
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(f"this needs {error.name}: install bon-server with its extra {extra}", 1)
    except _security_error() as error:
        fail(str(error), 2)
    except _rpc_error() as error:
        from bon import describe

        fail(describe(error), 1)
    finally:
        let_go_of_streams()


_MODELS = "[cpu] or [cuda]"
_EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors", "vllm", "llguidance", "tqdm"), _MODELS),
    **dict.fromkeys(("accelerate", "gguf", "reasoning_gym"), f"[demo], beside {_MODELS}"),
    **dict.fromkeys(("datasets", "peft", "trl"), f"[train], beside {_MODELS}"),
    "matplotlib": "[report]",
    "obstore": "[publish]",
    "opentelemetry": "[tracing]",
    "ray": "[ray]",
}
"""Module that a command imports when it needs it → the extra that brings it."""


def _run(words: list[str]) -> None:
    if not words or words[0] in app.help_flags:
        for name in app:
            app[name]  # imports the verb, whose first line is part of the help
    app(words, exit_on_error=False, print_error=False, result_action="return_value")
    called = app.parse_commands(words)[1][-1]
    if called.default_command is None and not {*words} & {*app.help_flags}:
        raise SystemExit(2)  # a verb is missing, and the help was shown


def _check_numbers(_: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Holds the words of numbers and choices to the ranges of their annotations. Raises `ConfigError`."""
    for argument in arguments:
        for token in argument.tokens:
            if argument.parameter.converter is None:
                check_value(token.keyword or argument.name, token.value, argument.field_info.annotation)


def _security_error() -> type[bon.SecurityError]:
    """The client is imported here, and thus only where something went wrong that may be its error."""
    import bon

    return bon.SecurityError


def _rpc_error() -> type[grpc.RpcError]:
    import grpc

    return grpc.RpcError


app = App(
    name="bon",
    help="Best-of-N over gRPC, with a log of every scored candidate.",
    version=__version__,
    config=_check_numbers,
    default_parameter=Parameter(
        allow_repeating=True,  # of a flag that takes one value the last one counts
        negative_bool=(),
        negative_iterable=(),
        show_default=as_default,
    ),
    group_parameters=Group("Options", sort_key=0),
    suppress_keyboard_interrupt=False,
)
_PANELS = {
    "Serve and ask": {
        "serve": "serving:serve",
        "ask": "asking:ask",
        "harvest": "asking:harvest",
        "health": "serving:health",
        "keys": "keys:app",
    },
    "Look into logs": {
        "log": "log:app",
        "evaluate": "evaluate:app",
        "report": "evaluate:report",
        "rescore": "rescore:rescore",
    },
    "Train on them": {"select": "offline:select", "train": "training:train", "rounds": "rounds:rounds"},
    "This machine": {"doctor": "serving:doctor", "bench": "bench:app", "demo": "demo:app"},
}
for _title, _verbs in _PANELS.items():
    _panel = Group.create_ordered(_title)
    for _order, (_name, _place) in enumerate(_verbs.items()):
        app.command(f"bon_server.cli.{_place}", name=_name, group=_panel, sort_key=_order)
app.register_install_completion_command(help="Install completion of verbs and flags for this shell, and exit.")
