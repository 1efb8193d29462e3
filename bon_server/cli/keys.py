"""Verbs of API keys: `bon keys new / list / revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from bon_server.cli.options import AsJson
from bon_server.cli.show import print_result
from bon_server.config.options import Positive
from bon_server.system.terminal import say

app = App(name="keys", help="Make, list and revoke API keys of a server, which reads their file again when it changes.")

Name = Annotated[str, Parameter(help="Name who calls: the principal in the log, of quotas and of idempotency keys.")]
KeyFile = Annotated[
    Path, Parameter(name="--file", help="Keep the keys in this TOML file, as bon serve --api-keys reads it.")
]


@app.command
def new(
    name: Name,
    /,
    *,
    file: KeyFile,
    rights: Annotated[
        str, Parameter(help="Give the key these rights, comma-separated: generate, score, feedback, admin (metrics).")
    ],
    candidates_per_minute: Annotated[
        Positive | None,
        Parameter(help="Let all keys of this name ask for so many candidates a minute. Default: no limit."),
    ] = None,
    tokens_per_minute: Annotated[
        Positive | None,
        Parameter(help="Let all keys of this name sample so many tokens a minute. Default: no limit."),
    ] = None,
) -> None:
    """Make a key and print it, once: only its digest is kept. Another one of a name works beside the first."""
    from bon_server.serving.auth.keys import Quota, add_key

    words = [word.strip() for word in rights.split(",") if word.strip()]
    say(add_key(file, name, words, Quota(candidates_per_minute, tokens_per_minute)))


@app.command(name="list")
def list_(*, file: KeyFile, as_json: AsJson = False) -> None:
    """Say who has keys, and what they open."""
    from bon_server.serving.auth.keys import read_keys

    found = {name: ", ".join(" ".join(key.rights) for key in keys) for name, keys in read_keys(file).by_name.items()}
    print_result(found, as_json)


@app.command
def revoke(name: Name, /, *, file: KeyFile, as_json: AsJson = False) -> None:
    """Take out all keys of a name; a running server notices within a second."""
    from bon_server.core.errors import ConfigError
    from bon_server.serving.auth import keys

    count = keys.revoke(file, name)
    if not count:
        raise ConfigError(f"{str(file)!r} has no key of the name {name!r}")
    print_result({"revoked": count}, as_json)
