"""Verbs of API keys: `bon keys new / list / revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bon_server.cli.options import AsJson
from bon_server.cli.show import print_result
from bon_server.terminal import say

app = typer.Typer(help="API keys of a server, which reads their file again when it changes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Who calls: the principal in the log, of quotas and of idempotency keys.")]
KeyFile = Annotated[Path, typer.Option("--file", help="TOML file of the keys, as for bon serve --api-keys.")]


@app.command()
def new(
    name: Name,
    file: KeyFile,
    rights: Annotated[str, typer.Option(help="Comma-separated: generate, score, feedback, admin (metrics).")],
    candidates_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Quota of all keys of this name. Default: none.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Quota of sampled tokens, likewise. Default: none.")
    ] = None,
) -> None:
    """Make a key and print it, once: only its digest is kept. Another one of a name works beside the first."""
    from bon_server.serving.key_file import add_key
    from bon_server.serving.keys import Quota

    words = [word.strip() for word in rights.split(",") if word.strip()]
    say(add_key(file, name, words, Quota(candidates_per_minute, tokens_per_minute)))


@app.command("list")
def list_(file: KeyFile, as_json: AsJson = False) -> None:
    """Who has keys, and what they open."""
    from bon_server.serving.keys import read_keys

    found = {name: ", ".join(" ".join(key.rights) for key in keys) for name, keys in read_keys(file).by_name.items()}
    print_result(found, as_json)


@app.command()
def revoke(name: Name, file: KeyFile, as_json: AsJson = False) -> None:
    """Take out all keys of a name; a running server notices within a second."""
    from bon_server.errors import ConfigError
    from bon_server.serving import key_file

    count = key_file.revoke(file, name)
    if not count:
        raise ConfigError(f"{str(file)!r} has no key of the name {name!r}")
    print_result({"revoked": count}, as_json)
