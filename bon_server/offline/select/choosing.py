"""Second stage: whole prompts, without texts: the filters that look at all candidates of a prompt, then the rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bon_server.offline.select.formats import FORMATS
from bon_server.offline.select.gathering import candidates_file, prompts_file
from bon_server.offline.select.options import Filters
from bon_server.offline.select.plan import SelectionPlan
from bon_server.offline.select.rows import (
    CANDIDATE,
    KEY,
    LINE,
    PICK,
    PLACE,
    Rows,
    distinct,
    empty,
    firsts,
    read_runs,
    sort_by,
    write_runs,
)
from bon_server.offline.select.rules import choose, grouped, merge_overall, one_line_per_prompt

MERGED = "merge-00000.picks"


def picks_files(plan: SelectionPlan) -> list[Path]:
    """What the rule picked, by place, when all is chosen."""
    if plan.rule.is_overall:
        return [plan.work / MERGED]
    return [_picks_file(plan, task) for task in range(plan.bucket_tasks)]


def _picks_file(plan: SelectionPlan, task: int) -> Path:
    return plan.work / f"choose-{task:05d}.picks"


def choose_prompts(plan: SelectionPlan, task: int) -> dict[str, Any]:
    """Writes what the rule picks of some prompts; returns counts, and lines of the training set by range."""
    candidates = [candidates_file(plan, number) for number in range(len(plan.tasks))]
    seen = [prompts_file(plan, number) for number in range(len(plan.tasks))]
    picked, dropped, prompts = empty(PICK), Counter[str](), 0
    pieces = [picked]
    for bucket in plan.buckets_of(task):
        prompts += distinct(read_runs(seen, KEY, plan.buckets, bucket, bucket))
        rows = read_runs(candidates, CANDIDATE, plan.buckets, bucket, bucket)
        rows = filter_prompts(plan.filters, rows, dropped)
        pieces.append(choose(plan.rule, rows))
    picked = np.concatenate(pieces)
    counts = {"prompts": prompts, "dropped": dict(dropped)}
    if plan.rule.is_overall:
        picked = merge_overall(plan.rule, picked)
        write_runs(_picks_file(plan, task), picked, np.zeros(len(picked), dtype=np.int64), 1)
        return counts
    return counts | {"lines": _write_picks(plan, _picks_file(plan, task), picked)}


def merge(plan: SelectionPlan, task: int) -> dict[str, Any]:
    """The only task of its stage, for `top-k-overall`: chooses from what was picked of all prompts."""
    picked = empty(PICK)
    for number in range(plan.bucket_tasks):
        more = read_runs([_picks_file(plan, number)], PICK, 1, 0, 0)
        picked = merge_overall(plan.rule, np.concatenate([picked, more]))
    return {"lines": _write_picks(plan, plan.work / MERGED, picked)}


def filter_prompts(filters: Filters, candidates: Rows, dropped: Counter[str]) -> Rows:
    """The candidates that are left; counts the others by reason. All candidates of a prompt must be there."""
    if filters.duplicates != "keep":
        candidates = sort_by(candidates, "hi", "lo", "text_hi", "text_lo", *PLACE)
        first = firsts(candidates, "hi", "lo", "text_hi", "text_lo")
        dropped["duplicate"] += int((~first).sum())
        candidates = candidates[first]
    if filters.min_n is not None:
        candidates, groups = grouped(candidates)
        enough = (groups.sizes() >= filters.min_n)[groups.of]
        dropped["min_n"] += int((~enough).sum())
        candidates = candidates[enough]
    if filters.min_spread is not None:
        candidates, groups = grouped(candidates)
        spread = groups.highest(candidates["value"]) - groups.lowest(candidates["value"])
        enough = (spread >= filters.min_spread)[groups.of]
        dropped["min_spread"] += int((~enough).sum())
        candidates = candidates[enough]
    return candidates


def _write_picks(plan: SelectionPlan, path: Path, picks: Rows) -> list[list[int]]:
    """Returns [range, lines] where there are any."""
    if FORMATS[plan.format].whole_prompts:
        picks = one_line_per_prompt(picks)
    picks = in_lines(picks)
    ranges = plan.range_of(picks["form"], picks["line_writer"], picks["line_ordinal"])
    write_runs(path, picks, ranges, plan.all_ranges)
    found, lines = np.unique(ranges[firsts(picks, *LINE)], return_counts=True)
    return [[int(one), int(count)] for one, count in zip(found, lines, strict=True)]


def in_lines(picks: Rows) -> Rows:
    """Picks in the order of the training set."""
    return sort_by(picks, *LINE, "role", *PLACE)
