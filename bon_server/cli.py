"""`bon`: one function per verb. Each parses its words, calls what does the work, and prints.

Exit codes: 0 done, 1 failed, 2 usage. With `--json` one JSON document and nothing else goes to stdout.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import bon
import grpc
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bon_server import __version__
from bon_server.config import Config, load, parse_assignments
from bon_server.errors import BonError, ConfigError
from bon_server.selection import OfflineRule

Target = Annotated[str, typer.Option(help="Address of the server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SkipDamaged = Annotated[
    bool, typer.Option("--skip-damaged", help="Leave out what cannot be read, naming it on stderr.")
]
LogDir = Annotated[Path, typer.Option("--log", help="Folder of the log.")]
Candidates = Annotated[int | None, typer.Option("-n", min=1, help="Candidates per prompt. Default: the server's.")]
Temperature = Annotated[float | None, typer.Option(help="Softmax temperature. Default: the server's.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling share. Default: the server's.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest completion. Default: the server's.")]
Seed = Annotated[int | None, typer.Option(help="Seed of candidate 0; candidate i uses seed + i. Default: random.")]
Raw = Annotated[bool, typer.Option("--raw", help="Prompts are texts to be continued, not user messages of a chat.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file; see bon_server/config.py for its keys.")]
Settings = Annotated[list[str], typer.Option("--set", help="Any other setting, as section.key=value. May be repeated.")]

DEFAULT_TARGET = "127.0.0.1:50051"

app = typer.Typer(
    help="Best-of-N over gRPC, with a log of every scored candidate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
demo_app = typer.Typer(
    help="The main job from end to end on this machine, with demo models.", invoke_without_command=True
)
log_app = typer.Typer(help="Look into a log, or put records into it.", no_args_is_help=True)
app.add_typer(log_app, name="log")
app.add_typer(demo_app, name="demo")


def main() -> None:
    """Entry point. Turns expected errors into one sentence on stderr and an exit code."""
    try:
        app()
    except ConfigError as error:
        _fail(str(error), 2)
    except BonError as error:
        _fail(str(error), 1)
    except grpc.RpcError as error:
        _fail(bon.describe(error), 1)
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 1)


@app.command()
def serve(
    policy: Annotated[str | None, typer.Option(help="Directory, hub id or synthetic[:key=value,...].")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="Directory, hub id, function:module:name or synthetic[:...]; name=... in front names it."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Folder of the log; made when missing.")] = None,
    publish: Annotated[
        str | None, typer.Option(help="Copy sealed segments to s3://..., gs://..., az://... or file:///...")
    ] = None,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address of the gRPC port.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Metrics port; 0 takes a free one.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written, with the addresses, once the server answers.")
    ] = None,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Serve best-of-N until SIGTERM or SIGINT."""
    flags = {
        "policy.model": policy,
        "reward.models": reward or None,
        "log.directory": _text(log),
        "log.publish": publish,
        "listen.host": host,
        "listen.port": port,
        "listen.metrics_port": metrics_port,
        "listen.ready_file": _text(ready_file),
        **parse_assignments(settings),
    }
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    raise typer.Exit(asyncio.run(_serve(load(config, flags=flags))))


async def _serve(config: Config) -> int:
    from bon_server.serving.banner import banner
    from bon_server.serving.server import Server, catch_signals, run_until_signalled, write_ready_file

    server = await Server.start(config)
    signals = catch_signals()
    print(banner(server), flush=True)  # noqa: T201
    write_ready_file(server)
    return await run_until_signalled(server, signals)


@app.command()
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
    raw: Raw = False,
    timeout: Annotated[float, typer.Option(help="Deadline in seconds; the best so far is taken then.")] = 120.0,
    stream: Annotated[bool, typer.Option("--stream", help="Show candidates as they are scored.")] = False,
    stop_at_reward: Annotated[float | None, typer.Option(help="Stop at the first candidate this good.")] = None,
    price: Annotated[float | None, typer.Option(help="Adaptive N: price of a candidate, in units of reward.")] = None,
) -> None:
    """Ask one question and show the best answer."""
    from bon_server import ask as asking

    options = _given(n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    options |= _given(stop_at_reward=stop_at_reward, price_per_candidate=price)
    options["view"] = "all" if show_all or not as_json else "winner"
    question = bon.Text(prompt) if raw else prompt
    if stream:
        console = Console(stderr=as_json)
        answer = asking.ask_streamed(question, target=target, timeout_s=timeout, console=console, **options)
    else:
        answer = asking.ask(question, target=target, timeout_s=timeout, **options)
    if as_json:
        print(asking.as_json(answer))  # noqa: T201
    else:
        Console().print(asking.as_table(answer, whole_texts=show_all))


@app.command()
def harvest(
    file: Annotated[Path, typer.Argument(help='JSON lines {"prompt", "reward_context"?, "tags"?, "id"?}.')],
    n: Candidates = None,
    target: Target = DEFAULT_TARGET,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    as_json: AsJson = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    raw: Raw = False,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a server that is full or away.")] = 300.0,
    out: Annotated[Path | None, typer.Option(help="Write the best answers here as JSON lines, as they come.")] = None,
) -> None:
    """Send many prompts through a server; safe to run again after a crash.

    A line without an id gets one that depends on the line, its occurrence and the options, so the same command asks for
    the same records again. A line with an id is asked for under exactly that id.
    """
    from bon_server.harvest.lines import Run
    from bon_server.harvest.progress import run_harvest

    options = _given(n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    result = run_harvest(file, Run(options, raw), target=target, concurrency=concurrency, patience_s=patience, out=out)
    _print_result(dataclasses.asdict(result), as_json)
    if result.failed or result.stopped:
        raise typer.Exit(1)


@log_app.command("stats")
def log_stats(log: LogDir, skip_damaged: SkipDamaged = False, as_json: AsJson = False) -> None:
    """Count what a log holds."""
    from bon_server.log.stats import log_stats as count

    _print_result(dict(count(log, _on_damage(skip_damaged))), as_json)


@log_app.command("seal")
def log_seal(log: LogDir, config: ConfigFile = None, as_json: AsJson = False, settings: Settings = []) -> None:  # noqa: B006 -- typer copies it
    """Move what is in the spool into segments, Parquet files that any engine reads; not while a server writes."""
    from contextlib import closing

    from bon_server.log.database import SPOOL_NAME
    from bon_server.log.sealing import seal
    from bon_server.log.spool import Spool

    chosen = load(config, flags=parse_assignments(settings)).log
    if not (log / SPOOL_NAME).is_file():
        _fail(f"{log} holds no log: {SPOOL_NAME} is missing", 1)
    with closing(Spool.open(log)) as spool:
        result = seal(spool, chosen.seal_bytes, chosen.replay_window_s)
    _print_result(dataclasses.asdict(result), as_json)
    if result.left:
        _fail(f"{result.left} records could not be sealed and stay in the spool; see bon log verify", 1)


@log_app.command("publish")
def log_publish(
    log: LogDir,
    to: Annotated[str, typer.Option(help="s3://bucket/prefix, gs://..., az://account/container/... or file:///folder")],
    patience: Annotated[float, typer.Option(min=0, help="Seconds to try again while the store fails.")] = 30.0,
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Copy the sealed segments that are not there yet to a store; not while a server writes."""
    from contextlib import closing

    from bon_server.log.database import SPOOL_NAME
    from bon_server.log.publisher import publish_all
    from bon_server.log.spool import Spool

    chosen = load(config, flags={**parse_assignments(settings), "log.publish": to}).log
    if not (log / SPOOL_NAME).is_file():
        _fail(f"{log} holds no log: {SPOOL_NAME} is missing", 1)
    with closing(Spool.open(log)) as spool:
        result = publish_all(spool, chosen, patience)
    _print_result(dataclasses.asdict(result), as_json)
    if result.failure is not None:
        _fail(result.failure, 1)


@log_app.command("snapshot")
def log_snapshot(
    name: Annotated[str, typer.Argument(help="Letters, digits, '.', '_' and '-'.")],
    log: LogDir,
    as_json: AsJson = False,
) -> None:
    """Pin the segments there are, with their digests, under a name. What is not sealed yet is not part of it."""
    from bon_server.log.snapshot import make_snapshot

    snapshot = make_snapshot(log, name)
    if as_json:
        print(json.dumps(snapshot))  # noqa: T201
    else:
        rows = sum(segment["rows"] for segment in snapshot["segments"])
        _print_result({"name": name, "segments": len(snapshot["segments"]), "records": rows}, as_json=False)


@log_app.command("verify")
def log_verify(log: LogDir, as_json: AsJson = False) -> None:
    """Read everything, and name what is wrong by kind, file and row; exit 1 when anything is."""
    from bon_server.log.verify import verify

    report = verify(log)
    if as_json:
        print(json.dumps(report))  # noqa: T201
    else:
        table = Table("kind", "file", "row", "detail", box=None)
        for problem in [*report["problems"], *report["notes"]]:
            table.add_row(problem["kind"], problem["file"], str(problem.get("row", "")), problem["detail"])
        problems = len(report["problems"]) + report["unlisted"]
        counts = f"{report['records']} records, {report['segments']} segments, {problems} problems"
        Console().print(table, counts)
    if not report["ok"]:
        raise typer.Exit(1)


@log_app.command("erase")
def log_erase(
    log: LogDir,
    request_id: Annotated[str | None, typer.Option(help="Remove every attempt at this request.")] = None,
    tag: Annotated[str | None, typer.Option(help="key=value: remove what has this tag.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove records and their feedback from every file of a log, for good; not while a server writes."""
    from bon_server.log.erase import erase
    from bon_server.log.rewrite import Match

    key, separator, value = (tag or "").partition("=")
    if tag is not None and not separator:
        raise ConfigError(f"--tag {tag!r} given; allowed is key=value")
    result = erase(log, Match(request_id, None if tag is None else (key, value)))
    _print_result(dict(result), as_json)


@log_app.command("expire")
def log_expire(log: LogDir, config: ConfigFile = None, as_json: AsJson = False, settings: Settings = []) -> None:  # noqa: B006 -- typer copies it
    """Remove the oldest sealed files by log.retain_days and log.retain_bytes, as a server does by itself."""
    from contextlib import closing

    from bon_server.log.database import SPOOL_NAME
    from bon_server.log.expire import Retention, expire
    from bon_server.log.spool import Spool

    chosen = load(config, flags=parse_assignments(settings)).log
    retention = Retention(chosen.retain_days, chosen.retain_bytes)
    if retention == Retention(None, None):
        raise ConfigError("log.retain_days and log.retain_bytes are unset: give --set log.retain_days=DAYS")
    if not (log / SPOOL_NAME).is_file():
        _fail(f"{log} holds no log: {SPOOL_NAME} is missing", 1)
    with closing(Spool.open(log)) as spool:
        result = expire(spool, retention)
    _print_result(dataclasses.asdict(result), as_json)


@log_app.command("records")
def log_records(
    log: LogDir,
    request_id: Annotated[str | None, typer.Option(help="Only this request.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    feedback: Annotated[bool, typer.Option("--feedback", help="Join what was observed: the key feedback.")] = False,
    long: Annotated[bool, typer.Option("--long", help="One line per candidate, with its request's columns.")] = False,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Print records as JSON lines, in commit order, also while a server writes them."""
    from itertools import islice

    from bon_server.log.feedback import to_json_with
    from bon_server.log.feedback_reader import FeedbackReader
    from bon_server.log.reader import LogReader, Where
    from bon_server.log.record import to_json, to_long_json

    on_damage = _on_damage(skip_damaged)
    with LogReader(log, on_damage) as reader, FeedbackReader(log, on_damage) as observed:
        for record in islice(reader.records(Where(request_id=request_id)), limit):
            lines = to_long_json(record) if long else [to_json(record)]
            if feedback:
                lines = [to_json_with(record, observed.of(record))]
            for line in lines:
                sys.stdout.buffer.write(line + b"\n")


@log_app.command("import")
def log_import(
    files: Annotated[list[Path], typer.Argument(help="Files to import: JSON lines or Parquet.")],
    log: LogDir,
    file_format: Annotated[str, typer.Option("--format", help="Format of the files: see docs.")] = "grouped",
    reward_model: Annotated[
        str | None, typer.Option(help="Source of the rewards. Default: as the files say, or a digest of them.")
    ] = None,
    reward_column: Annotated[
        list[str] | None,
        typer.Option(help="Column that is the reward, as NAME or NAME=WEIGHT; repeated: their weighted sum."),
    ] = None,
    rejected: Annotated[
        Path | None, typer.Option(help="Report on lines that cannot be imported. Default: a file in LOG/rejected.")
    ] = None,
    raw: Raw = False,
    as_json: AsJson = False,
) -> None:
    """Put other people's scored samples into a log; importing a file twice adds nothing.

    Lines that cannot be imported are counted and written, with number and reason, to a report. Exit code 1 when there
    are only such lines.
    """
    from bon_server.offline.importers import import_files
    from bon_server.offline.imports.options import ImportOptions, parse_columns

    columns = parse_columns(reward_column) if reward_column else None
    options = ImportOptions(tuple(files), log, file_format, reward_model, raw, columns, rejected)
    with _progress("importing", sum(file.stat().st_size for file in files)) as advance:
        result = import_files(options, advance)
    _print_result(dataclasses.asdict(result), as_json)
    if result.rejected:
        print(f"bon: {result.rejected} lines were rejected, see {result.rejected_file}", file=sys.stderr)  # noqa: T201
    if result.rejected and result.rejected == result.lines:
        raise typer.Exit(1)


@app.command()
def select(
    log: Annotated[list[Path], typer.Option("--log", help="Folder of a log; may be repeated.")],
    rule: Annotated[OfflineRule, typer.Option(help="How to choose; each rule has a random control.")],
    out: Annotated[Path, typer.Option(help="Folder for the training set and its manifest.")],
    k: Annotated[int | None, typer.Option("-k", "--k", help="How many, for the rules that need it.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="Format of the training set.")] = "trl-sft",
    seed: Annotated[int, typer.Option(help="Seed of a control's draw.")] = 0,
    merge: Annotated[bool, typer.Option(help="Whether requests of one prompt count as one.")] = True,
    keep_truncated: Annotated[
        bool, typer.Option("--keep-truncated", help="Also choose from those cut at max_tokens.")
    ] = False,
    reward_model: Annotated[
        str | None, typer.Option(help="Only rewards of this model count: ID or ID@REVISION.")
    ] = None,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Choose candidates of a log by their rewards and write them as a training set."""
    from bon_server.offline.select import SelectOptions
    from bon_server.offline.select import select as run_select

    options = SelectOptions(
        logs=tuple(log),
        rule=rule,
        out=out,
        k=k,
        format=file_format,
        seed=seed,
        merge=merge,
        keep_truncated=keep_truncated,
        reward_model=reward_model,
    )
    with _progress("reading records", None) as advance:
        manifest = run_select(options, advance, _on_damage(skip_damaged))
    if as_json:
        print(json.dumps(manifest))  # noqa: T201
        return
    _print_result({**manifest["counts"], "training set": str(out)}, as_json=False)


@app.command()
def doctor(
    log: Annotated[Path | None, typer.Option(help="Log folder to check too.")] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Check this machine; exit 1 when something needs attention."""
    from bon_server.doctor import examine

    findings = examine(load(config, flags={"log.directory": _text(log), **parse_assignments(settings)}))
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))  # noqa: T201
    else:
        table = Table("", "check", "finding", box=None)
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[red]!![/]", finding.check, finding.detail)
        Console().print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@demo_app.callback()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps models, logs and training sets.")] = Path(".demo"),
) -> None:
    """Build the demo models, serve them, ask, look into the log, and make a training set."""
    context.obj = folder
    if context.invoked_subcommand is None:
        from bon_server.demo.run import run_demo

        run_demo(folder, Console())


@demo_app.command("evaluate")
def demo_evaluate(
    context: typer.Context,
    split: Annotated[str, typer.Option(help="test for final figures, development for choosing.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="About so many problems, for a quick look.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the demo reward model on problems it never saw, with 95 % intervals; about 15 minutes on two cores."""
    if split not in ("test", "development"):
        raise ConfigError(f"--split {split!r}: allowed are test and development")
    from bon_server.demo.evaluate import evaluate
    from bon_server.demo.policy_model import build_policy
    from bon_server.demo.reward_model import build_reward

    models = context.obj / "models"
    policy = build_policy(models / "policy")
    reward = build_reward(models / "reward", policy)
    chosen: Any = split
    _print_result(evaluate(policy, reward, context.obj / "samples", split=chosen, limit=limit), as_json)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)  # noqa: T201


@contextmanager
def _progress(doing: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields what to call with how far it has come."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn() if total is None else TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda completed: progress.update(task, completed=completed)


def _on_damage(skip: bool) -> Callable[[BonError], None]:
    """What a reader does with what it cannot read."""

    def report(error: BonError) -> None:
        if not skip:
            raise error
        print(f"bon: left out: {error}", file=sys.stderr)  # noqa: T201

    return report


def _given(**options: Any) -> Any:
    """Only the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))  # noqa: T201
        return
    table = Table(box=None, show_header=False)
    for name, value in result.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    Console().print(table)


def _fail(message: str, code: int) -> NoReturn:
    print(f"bon: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
