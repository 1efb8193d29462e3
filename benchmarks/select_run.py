"""One selection in a process of its own, by us or by DuckDB, timed from when everything is imported.

    python -m benchmarks.select_run bon|ray|duckdb-… RULE LOG OUT K

The last line of stdout is JSON: seconds, rows written, peak resident memory in KiB. DuckDB's queries keep to the same
rules: truncated candidates and those without a reward are left out, requests of one prompt are merged, ties go to the
first in the log; texts, rewards and ids of the chosen are written to Parquet with zstd. Two ways to say best-per-prompt
are tried, and the faster one counts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bon_server.core.selection import OfflineRule
from bon_server.offline.select.options import Engine
from bon_server.offline.select.select import SelectOptions, select

THREADS = 2
_GOOD = "c.reward IS NOT NULL AND c.finish_reason IS DISTINCT FROM 'length'"
_UNNESTED = """
    SELECT prompt_hash, request_id, principal, ordinal, prompt_messages, policy.id AS policy_id, unnest(candidates) AS c
    FROM read_parquet('{files}')"""
QUERIES = {
    # Small columns first, texts of the chosen after: as a careful user would.
    ("duckdb-join", "best-per-prompt"): """
        WITH best AS (
            SELECT arg_min({{'ordinal': ordinal, 'index': c.index}},
                           {{'a': -c.reward, 'b': ordinal, 'c': c.index}}) AS place
            FROM (SELECT prompt_hash, ordinal, unnest(candidates) AS c FROM read_parquet('{files}'))
            WHERE {good} GROUP BY prompt_hash)
        SELECT prompt_hash, request_id, principal, log.ordinal, prompt_messages, policy.id AS policy_id,
               candidates[place.index + 1].text AS text, candidates[place.index + 1].reward AS reward,
               candidates[place.index + 1].finish_reason AS finish_reason, place.index AS candidate_index
        FROM read_parquet('{files}') AS log JOIN best ON log.ordinal = best.place.ordinal""",
    # Within each request first, then over the requests of a prompt.
    ("duckdb-lists", "best-per-prompt"): """
        WITH good AS (
            SELECT prompt_hash, request_id, principal, ordinal, prompt_messages, policy.id AS policy_id,
                   list_filter(candidates, lambda c: {good}) AS cs FROM read_parquet('{files}')),
        rewards AS (SELECT *, list_transform(cs, lambda c: c.reward) AS rs FROM good WHERE len(cs) > 0),
        own AS (SELECT * EXCLUDE (cs, rs), cs[list_position(rs, list_max(rs))] AS c FROM rewards)
        SELECT prompt_hash, request_id, principal, ordinal, prompt_messages, policy_id,
               c.text AS text, c.reward AS reward, c.finish_reason AS finish_reason, c.index AS candidate_index
        FROM own QUALIFY row_number() OVER (PARTITION BY prompt_hash ORDER BY c.reward DESC, ordinal) = 1""",
    ("duckdb-join", "top-k-overall"): """
        WITH best AS (
            SELECT ordinal, c.index AS i FROM (
                SELECT ordinal, unnest(candidates) AS c FROM read_parquet('{files}'))
            WHERE {good} ORDER BY c.reward DESC, ordinal, c.index LIMIT {k})
        SELECT prompt_hash, request_id, principal, log.ordinal, prompt_messages, policy.id AS policy_id,
               candidates[i + 1].text AS text, candidates[i + 1].reward AS reward,
               candidates[i + 1].finish_reason AS finish_reason, i AS candidate_index
        FROM read_parquet('{files}') AS log JOIN best USING (ordinal)""",
    ("duckdb-lists", "top-k-overall"): """
        SELECT prompt_hash, request_id, principal, ordinal, prompt_messages, policy_id,
               c.text AS text, c.reward AS reward, c.finish_reason AS finish_reason, c.index AS candidate_index
        FROM ({unnested}) WHERE {good} ORDER BY reward DESC, ordinal, candidate_index LIMIT {k}""",
}


def ours(engine: Engine, rule: OfflineRule, log: Path, out: Path, k: int) -> tuple[float, int]:
    """Seconds and rows written. The first output has the data, so a selection of one shard's size stays one file."""
    began = time.perf_counter()
    options = SelectOptions(
        (log,), rule, out, k=k if rule.needs_k else None, format="parquet", engine=engine, threads=THREADS
    )
    manifest = select(options)
    return time.perf_counter() - began, manifest["counts"]["selected"]


def duckdbs(query: str, rule: OfflineRule, log: Path, out: Path, k: int) -> tuple[float, int]:
    """Seconds and rows written."""
    import duckdb

    files = str(log / "segments" / "**" / "*.parquet")
    statement = QUERIES[query, rule.value].format(files=files, good=_GOOD, k=k, unnested=_UNNESTED.format(files=files))
    out.mkdir(parents=True)
    database = duckdb.connect()
    database.execute(f"SET threads = {THREADS}")
    began = time.perf_counter()
    database.execute(f"COPY ({statement}) TO '{out / 'chosen.parquet'}' (FORMAT parquet, COMPRESSION zstd)")
    seconds = time.perf_counter() - began
    (rows,) = database.execute(f"SELECT count(*) FROM '{out / 'chosen.parquet'}'").fetchall()[0]
    return seconds, int(rows)


def _peak_kib() -> int:
    """Of this process since its start."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


def main() -> None:
    """See the top of the file."""
    who, rule, log, out, k = sys.argv[1:]
    arguments = (OfflineRule(rule), Path(log), Path(out), int(k))
    if who.startswith("duckdb"):
        seconds, rows = duckdbs(who, *arguments)
    else:
        seconds, rows = ours("local" if who == "bon" else "ray", *arguments)
    print(json.dumps({"seconds": seconds, "rows": rows, "peak_kib": _peak_kib()}))  # noqa: T201


if __name__ == "__main__":
    main()
