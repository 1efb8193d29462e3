"""Verbs of a client: `bon ask`, `bon harvest`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bon_server.cli.options import (
    DEFAULT_TARGET,
    OR_DASH,
    Access,
    AsJson,
    Concurrency,
    Raw,
    Sampling,
    System,
    Target,
)
from bon_server.cli.show import print_result
from bon_server.config.options import FLAT, CallSeed, NotNegativeNumber, Positive, PositiveNumber, read_pairs
from bon_server.core.errors import ConfigError
from bon_server.system.terminal import Terminal, say


def ask(
    prompt: Annotated[str, Parameter(help="Ask this question, as one user message of a chat.")],
    /,
    *,
    target: Target = DEFAULT_TARGET,
    sampling: Annotated[Sampling, FLAT] = Sampling(),
    raw: Raw = False,
    timeout: Annotated[
        PositiveNumber, Parameter(help="Take the best so far after this many seconds, the deadline of the call.")
    ] = 120.0,
    stop_at_reward: Annotated[
        float | None, Parameter(help="Stop at the first candidate with at least this reward. Default: sample all.")
    ] = None,
    price: Annotated[
        NotNegativeNumber | None,
        Parameter(help="Choose n by this price of a candidate, in units of reward (adaptive N). Default: fixed n."),
    ] = None,
    show_all: Annotated[
        bool, Parameter(name="--all", help="Show whole texts; with --json give all candidates, not the best alone.")
    ] = False,
    stream: Annotated[bool, Parameter(help="Show each candidate as soon as it is scored.")] = False,
    as_json: AsJson = False,
    access: Annotated[Access, FLAT] = Access(),
) -> None:
    """Ask one question and show the best answer."""
    import bon

    from bon_server.cli import answers as asking

    options = sampling.given()
    if stop_at_reward is not None:
        options["stop_at_reward"] = stop_at_reward
    if price is not None:
        options["price_per_candidate"] = price
    options["view"] = "all" if show_all or not as_json else "winner"
    security = access.security()
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
        OR_DASH,
        Parameter(
            help="Send the prompts of this file or folder: JSON lines, Parquet, a folder of Parquet shards, or a data "
            "set that datasets saved."
        ),
    ],
    /,
    *,
    target: Target = DEFAULT_TARGET,
    sampling: Annotated[Sampling, FLAT] = Sampling(),
    top_k: Annotated[int | None, Parameter(help="Sample from the so many likeliest tokens. Default: from all.")] = None,
    min_p: Annotated[
        float | None,
        Parameter(
            help="Sample from tokens with at least this share of the likeliest's probability. Default: from all."
        ),
    ] = None,
    stop: Annotated[
        tuple[str, ...],
        Parameter(allow_leading_hyphen=True, help="End a completion at this text. May be repeated. Default: none."),
    ] = (),
    column: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="PART=COLUMN",
            help="Read a part of the request from this column: prompt=question, reward_context.answer=extra.gold, or "
            "tags= to leave it out. Parts are prompt, id, reward_context[.NAME] and tags[.NAME]. May be repeated. "
            "Default: each part from the column of its name.",
        ),
    ] = (),
    system: System = None,
    raw: Raw = False,
    tags: Annotated[
        tuple[tuple[str, str], ...],
        Parameter(
            name="--tag",
            converter=read_pairs,
            n_tokens=1,
            metavar="KEY=VALUE",
            help="Give every request this tag, KEY=VALUE. May be repeated. Default: none.",
        ),
    ] = (),
    concurrency: Concurrency = 8,
    patience: Annotated[
        NotNegativeNumber, Parameter(help="Wait so many seconds for a server that is full or away.")
    ] = 300.0,
    out: Annotated[
        Path | None,
        Parameter(help="Write the best answers to this file as JSON lines, as they come. Default: do not."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(help="Check all lines, ask a few, and estimate tokens and time; nothing is logged.")
    ] = False,
    sample: Annotated[
        Positive | None,
        Parameter(help="Ask so many prompts in a dry run. Default: 8, or --concurrency if that is more."),
    ] = None,
    sample_seed: Annotated[CallSeed, Parameter(help="Draw the prompts of a dry run from this seed.")] = 0,
    as_json: AsJson = False,
    access: Annotated[Access, FLAT] = Access(),
) -> None:
    """Send many prompts through a server; safe to run again after a crash.

    A line without an id gets one that depends on its prompt, reward context and tags, its occurrence and the options,
    so the same command asks for the same records again. A line with an id is asked for under exactly that id.
    """
    from bon_server.loop.harvest.dry_run import dry_run as run_dry
    from bon_server.loop.harvest.lines import Run
    from bon_server.loop.harvest.progress import run_harvest
    from bon_server.loop.harvest.prompts import parse_columns

    if raw and system is not None:
        raise ConfigError("--system is for chats; with --raw prompts are texts")
    for text in (system, sampling.regex, *sampling.choice, *stop, *(word for tag in tags for word in tag)):
        (text or "").encode()  # what is not UTF-8 is told once, not at each line
    more = {"top_k": top_k, "min_p": min_p, "stop": list(stop) or None, "tags": dict(tags) or None}
    options = sampling.given() | {name: value for name, value in more.items() if value is not None}
    run = Run(options, raw, system, parse_columns(column))  # type: ignore[arg-type]
    security = access.security()
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
            raise SystemExit(1)
        return
    result = run_harvest(
        file, run, target=target, security=security, concurrency=concurrency, patience_s=patience, out=out
    )
    print_result(dataclasses.asdict(result), as_json)
    if result.failed or result.stopped:
        raise SystemExit(1)
