"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[str, typer.Option(help="Address of the server.")]
TLS = "Keys and TLS"
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the API key. Default: the environment's BON_API_KEY.", rich_help_panel=TLS),
]
Tls = Annotated[bool, typer.Option("--tls", help="TLS with the usual authorities.", rich_help_panel=TLS)]
TlsCa = Annotated[Path | None, typer.Option(help="TLS with these authorities, as PEM.", rich_help_panel=TLS)]
TlsCert = Annotated[
    Path | None, typer.Option(help="Own certificate, for a server that asks for one.", rich_help_panel=TLS)
]
TlsKey = Annotated[Path | None, typer.Option(help="Private key of that certificate.", rich_help_panel=TLS)]
AllowInsecure = Annotated[
    bool,
    typer.Option("--allow-insecure", help="Send the key in plain text to another machine.", rich_help_panel=TLS),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SkipDamaged = Annotated[
    bool, typer.Option("--skip-damaged", help="Leave out what cannot be read, naming it on stderr.")
]
Snapshot = Annotated[
    str | None, typer.Option(help="Only what this snapshot pins, as it was then; see bon log snapshot.")
]
LogDir = Annotated[Path, typer.Option("--log", help="Folder of the log.")]
Candidates = Annotated[int | None, typer.Option("-n", min=1, help="Candidates per prompt. Default: the server's.")]
Temperature = Annotated[float | None, typer.Option(help="Softmax temperature. Default: the server's.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling share. Default: the server's.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest completion. Default: the server's.")]
Seed = Annotated[int | None, typer.Option(help="Seed of candidate 0; candidate i uses seed + i. Default: random.")]
System = Annotated[str | None, typer.Option(help="System message put before every prompt.")]
Concurrency = Annotated[int, typer.Option(min=1, max=10_000, help="Requests in flight.")]
Raw = Annotated[bool, typer.Option("--raw", help="Prompts are texts to be continued, not user messages of a chat.")]
JsonSchema = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="File with a JSON schema that completions satisfy.")
]
Regex = Annotated[str | None, typer.Option(help="Regular expression that whole completions match.")]
Choice = Annotated[list[str] | None, typer.Option(help="A completion that is allowed; repeat it, and no other is.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file; keys: bon_server/config.py and security.py.")]
Settings = Annotated[list[str], typer.Option("--set", help="Any other setting, as section.key=value. May be repeated.")]

DEFAULT_TARGET = "127.0.0.1:50051"
