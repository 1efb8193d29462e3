"""Retention: the oldest sealed files go, by age and by size, unless a snapshot pins them.

    forget      request ids of their records: a retry after this samples again
    expire      transactions take the files out of the log, and note that it was on purpose
    look        snapshots made meanwhile keep their files
    remove      the files, and the scores that were added to their records; what a crash leaves of them is no part of
                the log, and is removed the next time

Feedback comes after what it is about, so a file of it goes when every record of its date and before has gone. What
imports keep of their lines stays: expired lines are not imported again. The spool and segments of other writers are
left alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate, groupby
from pathlib import Path

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.catalog import Segment
from bon_server.log.read.snapshot import read_snapshot, snapshot_files
from bon_server.log.remove.rewrite import expire_scores
from bon_server.log.scores.files import FOLDER as SCORES_FOLDER
from bon_server.log.scores.files import changing_scores
from bon_server.log.segments.files import naming, open_parquet, writer_of
from bon_server.log.spool.pieces import change_in_pieces, pieces
from bon_server.log.spool.spool import Spool
from bon_server.system.files import sync_folder


@dataclass(slots=True)
class Expired:
    """What a run removed."""

    segments: int = 0
    """Files, those of feedback included."""
    records: int = 0
    feedback: int = 0
    """Observations."""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept; None: without limit."""

    days: float | None
    """Since the end of the day, UTC, on which the newest record of a file began."""
    bytes: int | None
    """Of sealed files."""


def expire(spool: Spool, retention: Retention, now: datetime | None = None) -> Expired:
    """Removes what need not be kept any more; blocks. Not while another thread seals.

    now: for tests; None: the time that is believed, see `clock`.

    Raises `LogError` for a snapshot that cannot be read, since it may pin anything, OSError when a file cannot be
    removed, and the `RequestError`s of `Spool.transaction`.
    """
    with spool.reading() as reading:
        with reading:
            records, feedback = catalog.segments(reading), catalog.segments(reading, stream=catalog.FEEDBACK)
            oldest_us: int | None = reading.execute("SELECT min(created_at_us) FROM records").get
        going = _choose(records, feedback, oldest_us, pinned(spool.directory), retention, now or _believed(spool))
        files = [one.file for one in going]
        kept: set[str] = set()
        for file in files:
            _forget(spool, spool.directory / file)
        if files:
            change_in_pieces(spool, pieces(files), catalog.expire)
            kept = pinned(spool.directory) & set(files)
            change_in_pieces(spool, pieces(sorted(kept)), catalog.keep)
        _remove(spool.directory, catalog.expired(reading))
    return _counted([one for one in going if one.file not in kept])


def pinned(directory: Path) -> set[str]:
    """Files that snapshots name. Raises `LogError` for a snapshot that cannot be read."""
    return {one["file"] for path in snapshot_files(directory) for one in read_snapshot(path)["segments"]}


def _choose(
    records: Sequence[Segment],
    feedback: Sequence[Segment],
    oldest_us: int | None,
    pinned: Collection[str],
    retention: Retention,
    now: datetime,
) -> list[Segment]:
    """What goes, oldest first."""
    dates, feedback_dates = _dates(records, now), _dates(feedback, now)
    in_order = sorted(
        (one for one in records if one.file not in pinned), key=lambda one: (dates[one], one.first_ordinal)
    )
    left_feedback = deque(sorted(feedback, key=lambda one: feedback_dates[one]))
    spool_date = date.max if oldest_us is None else (datetime(1970, 1, 1) + timedelta(microseconds=oldest_us)).date()
    oldest = min([spool_date, *(_date(one) for one in records if one.file in pinned)])
    oldest_after = list(accumulate(map(_date, reversed(in_order)), min, initial=oldest))[-2::-1]
    size = sum(one.bytes for one in (*records, *feedback))
    going: list[Segment] = []
    for one, oldest in zip(in_order, oldest_after, strict=True):
        too_old = retention.days is not None and _end(dates[one]) + timedelta(days=retention.days) <= now
        if not too_old and (retention.bytes is None or size <= retention.bytes):
            break
        going.append(one)
        size -= one.bytes
        while left_feedback and feedback_dates[left_feedback[0]] < oldest:
            unneeded = left_feedback.popleft()
            going.append(unneeded)
            size -= unneeded.bytes
    return going


def _date(segment: Segment) -> date:
    return date.fromisoformat(segment.file.split("date=")[1][:10])


def _end(day: date) -> datetime:
    return datetime(*(day + timedelta(days=1)).timetuple()[:3], tzinfo=UTC)


def _dates(segments: Sequence[Segment], now: datetime) -> dict[Segment, date]:
    """The day of each segment: that of its name, or a later one.

    A segment is not older than those sealed before it: the clock may have been behind while its records were written.
    What has a date to come was written with a clock that was ahead, and says nothing of others.
    """
    dates, newest, newest_before = {}, date.min, date.min
    for _, alike in groupby(sorted(segments, key=lambda one: one.last_ordinal), key=lambda one: one.last_ordinal):
        for one in alike:  # of one sealing, in which days have no order
            own = _date(one)
            newest = max(newest, own) if own <= now.date() else newest
            dates[one] = max(own, newest_before)
        newest_before = newest
    return dates


def _believed(spool: Spool) -> datetime:
    return datetime.fromtimestamp(spool.clock.believed_us() / 1e6, UTC)


def _forget(spool: Spool, path: Path) -> None:
    """Drops the request ids of a file's records. Ids of a damaged file are dropped when their time is over."""
    if path.parts[-4] != "segments":
        return
    try:
        change_in_pieces(spool, pieces(_ids(path)), catalog.forget)
    except LogError:
        return


def _ids(path: Path) -> Iterator[tuple[str, str, int]]:
    with closing(open_parquet(path)) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            with naming(path, f": row group {group}"):
                table = parquet.read_row_group(group, columns=["principal", "request_id", "attempt"])
            yield from zip(*(table[name].to_pylist() for name in table.column_names), strict=True)


def _remove(directory: Path, files: Sequence[str]) -> None:
    for file in files:
        path = directory / file
        if path.exists():
            _remove_scores(directory, file)
            path.unlink()
            sync_folder(path.parent)
            _remove_empty(path.parent)


def _remove_scores(directory: Path, file: str) -> None:
    """Of the records of a file, as far as they can be read; those of a damaged one stay, and are of no record."""
    if not file.startswith("segments/") or not (directory / SCORES_FOLDER).is_dir():
        return
    with suppress(LogError), changing_scores(directory):
        with closing(open_parquet(directory / file)) as parquet, naming(directory / file):
            ordinals = parquet.read(columns=["ordinal"])["ordinal"].to_numpy()
        if len(ordinals):
            expire_scores(directory, writer_of(file), ordinals)


def _remove_empty(folder: Path) -> None:
    """The folder of a writer, then of a date, when nothing is left in it."""
    for each in (folder, folder.parent):
        try:
            each.rmdir()
        except OSError:
            return
        sync_folder(each.parent)


def _counted(gone: Sequence[Segment]) -> Expired:
    observations = [one for one in gone if one.file.startswith("feedback/")]
    return Expired(
        segments=len(gone),
        records=sum(one.rows for one in gone) - sum(one.rows for one in observations),
        feedback=sum(one.rows for one in observations),
        bytes=sum(one.bytes for one in gone),
    )
