"""Verbs of the log: `bon log ...`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from rich.table import Table

from bon_server.cli.options import AsJson, ConfigFile, LogDir, Raw, Settings, SkipDamaged, Snapshot
from bon_server.cli.show import fail, on_damage, print_result, progress
from bon_server.config.options import NotNegativeNumber, Positive
from bon_server.config.settings import LogConfig, load, parse_assignments
from bon_server.core.errors import ConfigError
from bon_server.system.terminal import Terminal, print_json, warn

if TYPE_CHECKING:
    from bon_server.log.spool.spool import Spool

LOG_DEFAULTS = LogConfig()

app = App(name="log", help="Look into a log, or put records into it.")


@app.command(name="stats")
def log_stats(*, log: LogDir, skip_damaged: SkipDamaged = False, as_json: AsJson = False) -> None:
    """Count what a log holds."""
    from bon_server.log.read.stats import log_stats as count

    print_result(dict(count(log, on_damage(skip_damaged))), as_json)


@app.command(name="seal")
def log_seal(*, log: LogDir, config: ConfigFile = None, as_json: AsJson = False, settings: Settings = ()) -> None:
    """Move what is in the spool into segments, Parquet files that any engine reads; not while a server writes."""
    from bon_server.log.seal.sealing import seal

    chosen = load(config, flags=parse_assignments(settings)).log
    with _writing(log) as spool:
        result = seal(spool, chosen.seal_bytes, chosen.replay_window_s)
    print_result(dataclasses.asdict(result), as_json)
    if result.left:
        fail(f"{result.left} records could not be sealed and stay in the spool; see bon log verify", 1)


@app.command(name="publish")
def log_publish(
    *,
    log: LogDir,
    to: Annotated[
        str,
        Parameter(
            help="Copy to this place: s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix or "
            "file:///folder."
        ),
    ],
    patience: Annotated[
        NotNegativeNumber, Parameter(help="Try again for so many seconds while the store fails.")
    ] = 30.0,
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = (),
) -> None:
    """Copy the sealed segments that are not there yet to a store; not while a server writes."""
    from bon_server.log.publish.publisher import publish_all

    chosen = load(config, flags={**parse_assignments(settings), "log.publish": to}).log
    with _writing(log) as spool:
        result = publish_all(spool, chosen, patience)
    print_result(dataclasses.asdict(result), as_json)
    if result.failure is not None:
        fail(result.failure, 1)


@app.command(name="snapshot")
def log_snapshot(
    name: Annotated[str, Parameter(help="Give the snapshot this name of letters, digits, '.', '_' and '-'.")],
    /,
    *,
    log: LogDir,
    as_json: AsJson = False,
) -> None:
    """Pin the segments there are, with their digests, under a name. What is not sealed yet is not part of it."""
    from bon_server.log.read.snapshot import make_snapshot

    snapshot = make_snapshot(log, name)
    if as_json:
        print_json(snapshot)
    else:
        rows = sum(segment["rows"] for segment in snapshot["segments"])
        print_result({"name": name, "segments": len(snapshot["segments"]), "records": rows}, as_json=False)


@app.command(name="verify")
def log_verify(*, log: LogDir, as_json: AsJson = False) -> None:
    """Read everything, and name what is wrong by kind, file and row; exit 1 when anything is."""
    from bon_server.log.verify.verify import verify

    report = verify(log)
    if as_json:
        print_json(report)
    else:
        table = Table("kind", "file", "row", "detail", box=None)
        for problem in [*report["problems"], *report["notes"]]:
            table.add_row(problem["kind"], problem["file"], str(problem.get("row", "")), problem["detail"])
        problems = len(report["problems"]) + report["unlisted"]
        counts = f"{report['records']} records, {report['segments']} segments, {problems} problems"
        Terminal().print(table, counts)
    if not report["ok"]:
        raise SystemExit(1)


@app.command(name="erase")
def log_erase(
    *,
    log: LogDir,
    request_id: Annotated[
        str | None, Parameter(help="Remove every attempt at the request of this id. Default: --tag says which.")
    ] = None,
    tag: Annotated[
        str | None,
        Parameter(
            metavar="KEY=VALUE",
            help='Remove the records with this tag, KEY=VALUE, or {"KEY": "VALUE"} for a key with an equals sign. '
            "Default: --request-id says which.",
        ),
    ] = None,
    principal: Annotated[
        str | None,
        Parameter(
            help="Remove the records of this caller only. Needed where several callers used the request id. Default: "
            "of every caller."
        ),
    ] = None,
    to: Annotated[
        str | None, Parameter(help="Remove them from what was published at this place too. Default: log.publish.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = (),
) -> None:
    """Remove records and their feedback from every file of a log, for good; not while a server writes."""
    from bon_server.log.remove.erase import erase
    from bon_server.log.remove.rewrite import Match

    published = {} if to is None else {"log.publish": to}
    chosen = load(config, flags={**parse_assignments(settings), **published}).log
    result = erase(log, Match(request_id, None if tag is None else _key_and_value(tag), principal), chosen)
    print_result(dict(result), as_json)


@app.command(name="expire")
def log_expire(
    *,
    log: LogDir,
    clock_is_right: Annotated[bool, Parameter(help="Confirm the clock, where the log has reason to doubt it.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    settings: Settings = (),
) -> None:
    """Remove the oldest sealed files by log.retain_days and log.retain_bytes, as a server does by itself."""
    from bon_server.log.remove.expire import Retention, expire

    chosen = load(config, flags=parse_assignments(settings)).log
    retention = Retention(chosen.retain_days, chosen.retain_bytes)
    if retention == Retention(None, None):
        raise ConfigError("log.retain_days and log.retain_bytes are unset: give --set log.retain_days=DAYS")
    with _writing(log, LogConfig(clock_is_right=clock_is_right or chosen.clock_is_right)) as spool:
        if retention.days is not None and (doubts := spool.clock.doubts()) is not None:
            fail(doubts, 1)
        spool.transaction(spool.clock.save)
        result = expire(spool, retention)
    print_result(dataclasses.asdict(result), as_json)


@app.command(name="records")
def log_records(
    *,
    log: LogDir,
    request_id: Annotated[
        str | None, Parameter(help="Print the records of this request only. Default: of all requests.")
    ] = None,
    limit: Annotated[Positive | None, Parameter(help="Print at most so many records. Default: all.")] = None,
    feedback: Annotated[bool, Parameter(help="Add the feedback that was recorded, under the key feedback.")] = False,
    long: Annotated[bool, Parameter(help="Print one line for each candidate, with its request's columns.")] = False,
    snapshot: Snapshot = None,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Print records as JSON lines, in commit order, also while a server writes them."""
    from itertools import islice

    from bon.visible import visible_json

    from bon_server.log.feedback import to_json_with
    from bon_server.log.read.feedback import FeedbackReader
    from bon_server.log.read.reader import LogReader, Where
    from bon_server.log.read.snapshot import open_snapshot
    from bon_server.log.record import to_json, to_long_json

    report = on_damage(skip_damaged)
    opened = LogReader(log, report) if snapshot is None else open_snapshot(log, snapshot, report)
    with opened as reader, FeedbackReader(log, report) as observed:
        for record in islice(reader.records(Where(request_id=request_id)), limit):
            lines = to_long_json(record) if long else [to_json(record)]
            if feedback:
                lines = [to_json_with(record, observed.of(record))]
            for line in lines:
                sys.stdout.buffer.write(visible_json(line.decode()).encode() + b"\n")


@app.command(name="import")
def log_import(
    *files: Annotated[Path, Parameter(help="Import these files: JSON lines or Parquet.", required=True)],
    log: LogDir,
    file_format: Annotated[
        Literal["grouped", "openrlhf", "trl-grpo", "open-instruct", "verl"],
        Parameter(name="--format", help="Read the files in this format, see docs/importing.md."),
    ] = "grouped",
    reward_model: Annotated[
        str | None,
        Parameter(help="Name the source of the rewards. Default: as the files say, or a digest of them."),
    ] = None,
    reward_column: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="NAME[=WEIGHT]",
            help="Take the reward from this column, NAME or NAME=WEIGHT. May be repeated: the weighted sum. Default: "
            "what the format takes for it.",
        ),
    ] = (),
    rejected: Annotated[
        Path | None,
        Parameter(help="Report lines that cannot be imported in this file. Default: a file in LOG/rejected."),
    ] = None,
    raw: Raw = False,
    as_json: AsJson = False,
) -> None:
    """Put other people's scored samples into a log; importing a file twice adds nothing.

    Lines that cannot be imported are counted and written, with number and reason, to a report. Exit code 1 when there
    are only such lines.
    """
    from bon_server.offline.importing.importers import import_files
    from bon_server.offline.importing.options import ImportOptions, parse_columns

    columns = parse_columns(reward_column) if reward_column else None
    options = ImportOptions(files, log, file_format, reward_model, raw, columns, rejected)
    with progress("importing", sum(file.stat().st_size for file in files)) as advance:
        result = import_files(options, advance)
    print_result(dataclasses.asdict(result), as_json)
    if result.rejected:
        warn(f"{result.rejected} lines were rejected, see {result.rejected_file}")
    if result.rejected and result.rejected == result.lines:
        raise SystemExit(1)


def _key_and_value(tag: str) -> tuple[str, str]:
    """A JSON object of one pair of strings is that pair; anything else is split at its first `=`."""
    try:
        ((key, value),) = json.loads(tag).items()
        if isinstance(value, str):
            return key, value
    except (ValueError, AttributeError):  # no JSON, no object, or not one pair
        pass
    key, separator, value = tag.partition("=")
    if not separator:
        raise ConfigError(f"--tag {tag!r} given; allowed are key=value and a JSON object of one key and its value")
    return key, value


@contextmanager
def _writing(log: Path, config: LogConfig = LOG_DEFAULTS) -> Iterator[Spool]:
    """The spool of a log that exists, with the writer's lock."""
    from bon_server.log.spool.database import SPOOL_NAME
    from bon_server.log.spool.spool import Spool

    if not (log / SPOOL_NAME).is_file():
        fail(f"{log} holds no log: {SPOOL_NAME} is missing", 1)
    with closing(Spool.open(log, config)) as spool:
        yield spool
