"""Files of other frameworks to import, written the way these frameworks write them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.offline.importing.importers import import_files
from bon_server.offline.importing.options import ImportOptions, ImportResult


class Sample(NamedTuple):
    """A scored sample, whatever the framework."""

    prompt: str
    text: str
    reward: float | None


def openrlhf(sample: Sample) -> dict[str, Any]:
    """As `batch_inference --eval_task rm`."""
    return {"input": sample.prompt, "output": sample.text, "reward": sample.reward}


def trl_grpo(sample: Sample) -> dict[str, Any]:
    """As `log_completions=True` with one reward function."""
    return {
        "step": 1,
        "prompt": [{"role": "user", "content": sample.prompt}],
        "completion": [{"role": "assistant", "content": sample.text}],
        "accuracy": sample.reward,
        "advantage": 0.5,
    }


def open_instruct(sample: Sample) -> dict[str, Any]:
    """As `rejection_sampling.py --save_filename_scores`."""
    return {
        "messages": [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.text}],
        "model_completion": sample.text,
        "reference_completion": "a reference",
        "score": {"org/rm": sample.reward},
        "reference_completion_score": {"org/rm": 0.5},
    }


def verl(sample: Sample) -> dict[str, Any]:
    """As `trainer.rollout_data_dir`."""
    return {"input": sample.prompt, "output": sample.text, "gts": "7", "score": sample.reward, "step": 1, "acc": True}


WRITERS = {"openrlhf": openrlhf, "trl-grpo": trl_grpo, "open-instruct": open_instruct, "verl": verl}


def write_lines(file: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """JSON lines."""
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def write_parquet(file: Path, lines: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """Parquet in row groups of three."""
    pq.write_table(pa.Table.from_pylist(list(lines), schema), file, row_group_size=3)
    return file


def import_into(log: Path, file_format: str, *files: Path, **options: Any) -> ImportResult:
    """`bon log import --format file_format FILES`."""
    return import_files(ImportOptions(files, log, file_format, **options))


def records(log: Path) -> list[Record]:
    """All of a log."""
    with LogReader(log) as reader:
        return list(reader.records())


def samples(log: Path) -> Counter[Sample]:
    """The candidates of a log whose prompts are single user messages."""
    return Counter(
        Sample(record.prompt_messages[0].content, candidate.text, candidate.reward)
        for record in records(log)
        if record.prompt_messages is not None
        for candidate in record.candidates
    )


def rejections(result: ImportResult) -> list[tuple[int, str]]:
    """Line numbers and reasons of the report."""
    assert result.rejected_file is not None
    report = [json.loads(text) for text in Path(result.rejected_file).read_text().splitlines()]
    assert len(report) == result.rejected
    return [(row["line"], row["reason"]) for row in report]
