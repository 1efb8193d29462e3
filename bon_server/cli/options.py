"""Flags that several verbs share: those of one value as annotations, those that belong together as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter
from cyclopts.validators import Path as PathCheck

from bon_server.config.options import CallSeed, Positive, RequestsInFlight, panel
from bon_server.core.errors import ConfigError

if TYPE_CHECKING:
    from bon import Security

DEFAULT_TARGET = "127.0.0.1:50051"
ACCESS = panel("Keys and TLS")
FILE = Parameter(validator=PathCheck(exists=True, dir_okay=False))


def _refuse_flag(_: Any, path: Path) -> None:
    if str(path).startswith("-") and str(path) != "-":
        raise ValueError("There is no such flag.")


OR_DASH = Parameter(allow_leading_hyphen=True, validator=_refuse_flag)
"""Of a file that is given by its place: `-` is one, but a misspelt flag is not."""

Target = Annotated[str, Parameter(help="Call the server at this address, HOST:PORT.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print one JSON document and nothing else on stdout.")]
SkipDamaged = Annotated[bool, Parameter(help="Leave out what cannot be read, and name it on stderr.")]
Snapshot = Annotated[
    str | None,
    Parameter(help="Read what the snapshot of this name pins; see bon log snapshot. Default: all records."),
]
LogDir = Annotated[Path, Parameter(name="--log", help="Use the log in this folder.")]
Concurrency = Annotated[RequestsInFlight, Parameter(help="Keep so many requests in flight.")]
System = Annotated[
    str | None,
    Parameter(help="Put this system message before every prompt. Default: none.", allow_leading_hyphen=True),
]
Raw = Annotated[
    bool, Parameter(help="Continue string prompts as texts, instead of sending them as a user message of a chat.")
]
ConfigFile = Annotated[
    Path | None,
    Parameter(help="Read settings from this TOML file; deploy/bon.toml is an example. Default: none."),
]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, as section.key=value. May be repeated. Default: as the file or the environment says.",
    ),
]
RewardModelId = Annotated[
    str | None,
    Parameter(
        help="Count only the rewards of this model, ID or ID@REVISION. Default: of all, which must be one model."
    ),
]


@ACCESS
@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """How the way to a server is protected."""

    tls: bool = False
    """Use TLS and trust the usual authorities."""
    tls_ca: Path | None = None
    """Use TLS and trust the authorities in this PEM file. Default: the usual ones."""
    tls_cert: Path | None = None
    """Show the certificate in this PEM file to a server that asks for one. Default: none."""
    tls_key: Path | None = None
    """Take the private key of that certificate from this PEM file. Default: none."""

    def security(self) -> Security:
        """The same, as the client takes it."""
        return cast("Security", {field.name: getattr(self, field.name) for field in fields(self)})


@ACCESS
@dataclass(frozen=True, slots=True, kw_only=True)
class Access(Encryption):
    """How a client gets in."""

    api_key_file: Path | None = None
    """Send the API key in this file. Default: the one in the environment's BON_API_KEY, if there is one."""
    allow_insecure: bool = False
    """Send the key in plain text to another machine, where something else protects the way there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How candidates are sampled. None: as the server has it."""

    n: Annotated[Positive | None, Parameter(name="-n")] = None
    """Sample so many candidates for each prompt. Default: the server's."""
    temperature: float | None = None
    """Sample at this softmax temperature. Default: the server's."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability. Default: the server's."""
    max_tokens: int | None = None
    """Cut completions after so many tokens. Default: the server's."""
    seed: CallSeed | None = None
    """Sample candidate i with the seed SEED + i. Default: random."""
    json_schema: Annotated[Path | None, FILE] = None
    """Let every completion satisfy the JSON schema in this file. Default: no constraint."""
    regex: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Let every whole completion match this regular expression. Default: no constraint."""
    choice: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = ()
    """Let every completion be this text, or another --choice. May be repeated. Default: no constraint."""

    def given(self) -> dict[str, Any]:
        """What was given, as options of the client. Raises `ConfigError` for more than one constraint."""
        options = {
            name: value for field in fields(self) if (value := getattr(self, name := field.name)) not in (None, ())
        }
        if len(options.keys() & {"json_schema", "regex", "choice"}) > 1:
            raise ConfigError("at most one of --json-schema, --regex and --choice can be given")
        if self.choice:
            options["choice"] = list(self.choice)
        if self.json_schema is not None:
            try:
                options["json_schema"] = self.json_schema.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise ConfigError(f"--json-schema {str(self.json_schema)!r} is not UTF-8") from None
        return options
