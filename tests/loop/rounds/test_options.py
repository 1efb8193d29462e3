"""What rounds refuse before anything is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.selection import OfflineRule
from bon_server.loop.harvest.prompts import parse_columns
from bon_server.loop.rounds.folder import fix_options, link_best
from bon_server.loop.rounds.options import Asking, RoundsOptions, Stops, check
from bon_server.loop.rounds.run import refuse_overlap


@pytest.fixture
def options(tmp_path: Path) -> RoundsOptions:
    """Options that are in order."""
    for name in ("train", "held-out"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    return RoundsOptions(
        policy="org/model",
        rewards=("synthetic",),
        prompts=tmp_path / "train.jsonl",
        held_out=tmp_path / "held-out.jsonl",
        out=tmp_path / "run",
    )


def test_defaults_are_in_order(options: RoundsOptions) -> None:
    check(options)
    check(replace(options, method="dpo"))
    assert options.the_rule is OfflineRule.BEST_PER_PROMPT
    assert replace(options, method="dpo").the_rule is OfflineRule.PAIRS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": ()}, "reward:"),
        ({"rounds": 0}, "rounds: 0 given"),
        ({"start_from": "first"}, "start_from: 'first' given; allowed are base, last"),
        ({"asking": Asking(n=1)}, "n: 1 given"),
        ({"asking": Asking(temperature=0.0)}, "temperature: 0.0 given"),
        ({"asking": Asking(raw=True, system="s")}, "system:"),
        ({"held_out_n": 0}, "held_out_n: 0 given"),
        ({"stops": Stops(patience=0)}, "patience: 0 given"),
        ({"stops": Stops(min_distinct=2.0)}, "min_distinct: 2.0 given"),
        ({"gold": "module:name"}, "gold: 'module:name' given"),
        ({"policy": "synthetic:tokens=3"}, "policy:"),
        ({"method": "ppo"}, "method: 'ppo' given"),
        ({"rule": OfflineRule.PAIRS}, "format: 'trl-tokens' given"),
        ({"method": "dpo", "rule": OfflineRule.BEST_PER_PROMPT}, "format: 'trl-dpo' given"),
        ({"rule": OfflineRule.TOP_K_OVERALL}, "k: None given"),
        ({"training": {"learning_rat": "1"}}, "train: learning_rat given; bon train has no such option"),
        ({"training": {"learning_rate": "fast"}}, "train: .*learning_rate"),
        ({"training": {"epochs": "-1"}}, "epochs: -1.0 given"),
        ({"training": {"out": "elsewhere"}}, "train: out given; bon rounds sets it itself"),
    ],
)
def test_others_are_refused(options: RoundsOptions, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(replace(options, **changes))


def test_training_options_are_read_as_what_they_are(options: RoundsOptions) -> None:
    given = {"learning_rate": "1e-5", "lora": "false", "batch_size": "4", "eval_data": "dev.jsonl"}
    read = replace(options, training=given, seed=7).train_options(Path("d"), "p", Path("o"))
    assert (read.learning_rate, read.lora, read.batch_size, read.eval_data) == (1e-5, False, 4, Path("dev.jsonl"))
    assert (read.data, read.policy, read.out, read.seed) == (Path("d"), "p", Path("o"), 7)


def test_held_out_samples_are_filtered_out(options: RoundsOptions) -> None:
    assert options.selection((Path("a"), Path("b")), Path("o")).filters.tags == (("split", "train"),)


def test_prompts_in_both_files_are_refused(options: RoundsOptions, tmp_path: Path) -> None:
    columns = parse_columns(["prompt=q"])
    pq.write_table(pa.table({"q": ["a", "b", "c"], "more": [1, 2, 3]}), tmp_path / "train")
    other = tmp_path / "held-out"
    other.write_text('{"q": "d"}\nnot json\n')
    refuse_overlap(tmp_path / "train", other, columns)
    other.write_text('{"q": "d"}\n{"q": [{"content": "b", "role": "user"}]}\n')
    with pytest.raises(ConfigError, match="held_out: 1 of 2 prompts"):
        refuse_overlap(tmp_path / "train", other, columns)


def test_identity_is_of_what_prompts_say_not_of_where_they_are(options: RoundsOptions, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(options.prompts.read_bytes())
    identity = options.identity()
    assert replace(options, prompts=moved, rounds=9, concurrency=1).identity() == identity
    moved.write_text('{"prompt": "else"}\n')
    assert replace(options, prompts=moved).identity() != identity
    assert json.loads(json.dumps(identity)) == identity


def test_another_run_in_the_folder_is_refused_naming_what_differs(options: RoundsOptions, tmp_path: Path) -> None:
    asked = options.identity()
    fix_options(tmp_path, asked)
    fix_options(tmp_path, asked)
    with pytest.raises(LogError, match=r"asking.n: null there, 8 given; start_from: \"base\" there, \"last\" given"):
        fix_options(tmp_path, replace(options, asking=Asking(n=8), start_from="last").identity())


def test_the_best_is_linked(tmp_path: Path) -> None:
    (tmp_path / "run" / "round-01" / "policy").mkdir(parents=True)
    (tmp_path / "first").mkdir()
    best = tmp_path / "run" / "best"
    link_best(tmp_path / "run", "round-01/policy")
    assert str(best.readlink()) == "round-01/policy"
    link_best(tmp_path / "run", str(tmp_path / "first"))
    assert best.resolve() == tmp_path / "first"
    link_best(tmp_path / "run", "org/model")
    assert not best.is_symlink()
