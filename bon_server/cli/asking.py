"""Verbs of a client: `bon ask`, `bon harvest`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import bon
import typer

from bon_server.cli.options import (
    DEFAULT_TARGET,
    AllowInsecure,
    ApiKeyFile,
    AsJson,
    Candidates,
    Choice,
    Concurrency,
    JsonSchema,
    MaxTokens,
    Raw,
    Regex,
    Seed,
    System,
    Target,
    Temperature,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    TopP,
)
from bon_server.cli.show import given, key_value, print_result
from bon_server.terminal import Terminal, say


def ask(
    prompt: Annotated[str, typer.Argument(help="The question: one user message of a chat.")],
    n: Candidates = None,
    target: Target = DEFAULT_TARGET,
    show_all: Annotated[bool, typer.Option("--all", help="Whole texts; with --json all candidates.")] = False,
    as_json: AsJson = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    raw: Raw = False,
    timeout: Annotated[float, typer.Option(help="Deadline in seconds; the best so far is taken then.")] = 120.0,
    stream: Annotated[bool, typer.Option("--stream", help="Show candidates as they are scored.")] = False,
    stop_at_reward: Annotated[float | None, typer.Option(help="Stop at the first candidate this good.")] = None,
    price: Annotated[float | None, typer.Option(help="Adaptive N: price of a candidate, in units of reward.")] = None,
    api_key_file: ApiKeyFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Ask one question and show the best answer."""
    from bon_server import ask as asking

    options = given(n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    options |= given(stop_at_reward=stop_at_reward, price_per_candidate=price)
    options |= _constraint(json_schema, regex, choice)
    options["view"] = "all" if show_all or not as_json else "winner"
    security = bon.Security(
        api_key_file=api_key_file,
        tls=tls,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        allow_insecure=allow_insecure,
    )
    question = bon.Text(prompt) if raw else prompt
    if stream:
        console = Terminal(stderr=as_json)
        answer = asking.ask_streamed(
            question, target=target, security=security, timeout_s=timeout, console=console, **options
        )
    else:
        answer = asking.ask(question, target=target, security=security, timeout_s=timeout, **options)
    if as_json:
        say(asking.as_json(answer))
    else:
        Terminal().print(asking.as_table(answer, whole_texts=show_all))


def harvest(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, Parquet, a folder of Parquet shards, or one that datasets saved; see --column."
        ),
    ],
    n: Candidates = None,
    target: Target = DEFAULT_TARGET,
    concurrency: Concurrency = 8,
    as_json: AsJson = False,
    column: Annotated[
        list[str],
        typer.Option(
            help="Where a part of the request is: prompt=question, reward_context.answer=extra.gold, tags= (left out). "
            "Parts: prompt, id, reward_context[.NAME], tags[.NAME]; each by default in the column of its name."
        ),
    ] = [],  # noqa: B006 - Typer copies it
    system: System = None,
    tag: Annotated[list[str], typer.Option(help="KEY=VALUE, for every request. May be repeated.")] = [],  # noqa: B006
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many tokens. Default: from all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Not from tokens below this share of the likeliest.")] = None,
    max_tokens: MaxTokens = None,
    stop: Annotated[list[str], typer.Option(help="Text that ends a completion. May be repeated.")] = [],  # noqa: B006
    seed: Seed = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    raw: Raw = False,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a server that is full or away.")] = 300.0,
    out: Annotated[Path | None, typer.Option(help="Write the best answers here as JSON lines, as they come.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all lines, ask a few, estimate tokens and time; nothing is logged.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Prompts that a dry run asks. Default: 8, or --concurrency if more.")
    ] = None,
    sample_seed: Annotated[int, typer.Option(help="Of the draw of these prompts.")] = 0,
    api_key_file: ApiKeyFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Send many prompts through a server; safe to run again after a crash.

    A line without an id gets one that depends on its prompt, reward context and tags, its occurrence and the options,
    so the same command asks for the same records again. A line with an id is asked for under exactly that id.
    """
    from bon_server.harvest.columns import parse_columns
    from bon_server.harvest.dry_run import dry_run as run_dry
    from bon_server.harvest.lines import Run
    from bon_server.harvest.progress import run_harvest

    if raw and system is not None:
        raise typer.BadParameter("--system is for chats; with --raw prompts are texts")
    for given_text in (system, regex, *tag, *stop, *(choice or ())):
        (given_text or "").encode()  # what is not UTF-8 is told once, not at each line
    options = given(
        n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, top_k=top_k, min_p=min_p
    )
    options |= given(stop=stop or None, tags=dict(map(key_value, tag)) or None)
    options |= _constraint(json_schema, regex, choice)
    run = Run(options, raw, system, parse_columns(column))
    security = bon.Security(
        api_key_file=api_key_file,
        tls=tls,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        allow_insecure=allow_insecure,
    )
    if dry_run:
        told = run_dry(
            file,
            run,
            target=target,
            security=security,
            concurrency=concurrency,
            sample=sample,
            seed=sample_seed,
            patience_s=patience,
        )
        print_result(told, as_json)
        if told["bad_lines"] or told["sample"]["failures"]:
            raise typer.Exit(1)
        return
    result = run_harvest(
        file, run, target=target, security=security, concurrency=concurrency, patience_s=patience, out=out
    )
    print_result(dataclasses.asdict(result), as_json)
    if result.failed or result.stopped:
        raise typer.Exit(1)


def _constraint(json_schema: Path | None, regex: str | None, choice: list[str] | None) -> dict[str, Any]:
    """The one that is given, as an option of the client."""
    chosen: dict[str, Any] = given(json_schema=json_schema, regex=regex, choice=choice or None)
    if len(chosen) > 1:
        raise typer.BadParameter("at most one of --json-schema, --regex and --choice can be given")
    if json_schema is not None:
        try:
            chosen["json_schema"] = json_schema.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise typer.BadParameter(f"--json-schema {str(json_schema)!r} is not UTF-8") from None
    return chosen
