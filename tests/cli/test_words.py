"""Words of the command line and the options that they become."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from bon_server.cli import app
from bon_server.cli.settings import given
from bon_server.config.settings import load
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Kind
from bon_server.evaluate.curve_sums import KlMethod
from bon_server.loop.harvest.prompts import Columns
from bon_server.loop.rounds.options import Asking, RoundsOptions, Stops
from bon_server.offline.importing.options import IMPORT_FORMATS
from bon_server.offline.select.options import Filters, SelectOptions, Written
from bon_server.offline.train.options import TrainOptions
from tests.command import run_bon


def parsed(*words: str) -> dict[str, Any]:
    """What a verb would be called with."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return dict(bound.arguments)


def test_select() -> None:
    words = "select --log a --log b --rule soft --out o -k 2 --temperature 0.5 --no-merge --kind score --kind generate"
    words += " --tag a=b --tag c=d=e --policy x --policy y --principal p --since 2026-01-01"
    words += " --until 2026-01-02T03:00+02:00 --min-n 3 --format messages --compression gzip --max-length 7 --seed 1"
    assert parsed(*words.split())["options"] == SelectOptions(
        logs=(Path("a"), Path("b")),
        rule=OfflineRule.SOFT,
        out=Path("o"),
        k=2,
        temperature=0.5,
        format="messages",
        seed=1,
        filters=Filters(
            merge=False,
            kinds=(Kind.SCORE, Kind.GENERATE),
            tags=(("a", "b"), ("c", "d=e")),
            policies=("x", "y"),
            principals=("p",),
            since=datetime(2026, 1, 1, tzinfo=UTC),
            until=datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))),
            min_n=3,
        ),
        written=Written(compression="gzip", max_length=7),
    )


def test_the_order_of_kinds_is_none_of_the_manifest() -> None:
    one, other = (
        Filters(kinds=kinds).as_json() for kinds in ((Kind.SCORE, Kind.GENERATE), (Kind.GENERATE, Kind.SCORE))
    )
    assert one == other and one["kinds"] == ["generate", "score"]


def test_train() -> None:
    needed = "train --data d --policy p --out o"
    plain = TrainOptions(data=Path("d"), policy="p", out=Path("o"))
    assert parsed(*needed.split())["options"] == plain
    words = f"{needed} --full --method dpo --learning-rate 1e-5 --warmup-ratio 0.1 --lr-scheduler-type cosine"
    words += " --per-device-train-batch-size 2 --weight-decay 0.01 --no-gradient-checkpointing --eval-data e"
    assert parsed(*words.split())["options"] == TrainOptions(
        data=Path("d"),
        policy="p",
        out=Path("o"),
        lora=False,
        method="dpo",
        learning_rate=1e-5,
        warmup_ratio=0.1,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=2,
        weight_decay=0.01,
        gradient_checkpointing=False,
        eval_data=Path("e"),
    )


def test_rounds(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.touch()
    words = (
        f"rounds --policy p --reward a --reward b=c --prompts {prompts} --held-out {prompts} --out o --rounds 5 -n 4"
    )
    words += " --temperature 0.7 --column prompt=q --server-patience 5 --from last --no-merge-rounds --patience 3"
    words += " --train lora=false --train learning_rate=1e-4 --min-distinct 0 --set limits.max_n=9 --kl-texts 0"
    assert parsed(*words.split())["options"] == RoundsOptions(
        policy="p",
        rewards=("a", "b=c"),
        prompts=prompts,
        held_out=prompts,
        out=Path("o"),
        rounds=5,
        asking=Asking(n=4, temperature=0.7, columns=Columns((("prompt", "q"),))),
        patience_s=5.0,
        start_from="last",
        merge_rounds=False,
        training={"lora": "false", "learning_rate": "1e-4"},
        stops=Stops(patience=3, min_distinct=0.0),
        settings=("limits.max_n=9",),
        kl_texts=0,
    )


def test_serve() -> None:
    words = (
        "serve --policy p --reward a --reward b --log l --port 0 --tracing --log-format json --tls-cert c --tls-key k"
    )
    arguments = parsed(*words.split())
    settings = given(arguments["flags"]) | given(arguments["callers"])
    config = load(None, {"BON_LISTEN_HOST": "::1", "BON_LISTEN_PORT": "7"}, settings)
    assert (config.policy.model, config.reward.models, config.log.directory) == ("p", ("a", "b"), "l")
    assert (config.listen.port, config.listen.host) == (0, "::1"), (
        "a flag that is not given leaves the environment alone"
    )
    assert config.telemetry.tracing and config.telemetry.log_format == "json"
    assert (config.security.tls_cert, config.security.allow_insecure) == ("c", False)
    assert given(parsed("serve").get("flags", arguments["callers"])).get("reward.models") is None


def test_the_last_of_a_flag_counts_and_of_a_list_all() -> None:
    arguments = parsed("harvest", "f", "-n", "2", "--stop", "---", "-n", "3", "--stop", "b")
    assert (arguments["sampling"].n, arguments["stop"]) == (3, ("---", "b"))


def test_a_dash_is_a_file_and_a_prompt_may_begin_with_one() -> None:
    assert parsed("harvest", "-", "-n", "2")["file"] == Path("-")
    assert parsed("ask", "-n", "2", "--", "-x is 5")["prompt"] == "-x is 5"


TRAIN = ("train", "--data", "d", "--policy", "p", "--out", "o")
SELECT = ("select", "--log", "l", "--out", "o", "--rule", "soft")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*SELECT, "-k", "0"), "-k: '0' given; allowed are whole numbers from 1"),
        ((*SELECT, "-k", "2.5"), "-k: '2.5' given; allowed are whole numbers from 1"),
        ((*SELECT, "--quantile", "1.5"), "--quantile: '1.5' given; allowed are finite numbers from 0 to 1"),
        ((*SELECT, "--threshold", "nan"), "--threshold: 'nan' given; allowed are finite numbers"),
        ((*SELECT, "--duplicates", "some"), "--duplicates: 'some' given; allowed are keep, exact, normalised"),
        ((*SELECT, "--rule", "best"), "--rule: 'best' given; allowed are best-per-prompt, top-k-per-prompt"),
        ((*SELECT, "--kind", "chat"), "--kind: 'chat' given; allowed are generate, score, import"),
        ((*SELECT, "--tag", "a"), "--tag: 'a' given; expected KEY=VALUE"),
        ((*SELECT, "--since", "now"), "--since: 'now' given; expected a time as in"),
        ((*SELECT, "--engin", "ray"), "Unknown option: --engin. Did you mean --engine?"),
        ((*SELECT, "more"), "more"),
        (("select", "--log", "l"), "--rule"),
        ((*TRAIN, "--epochs", "0"), "--epochs: '0' given; allowed are finite numbers above 0"),
        ((*TRAIN, "--eval-share", "1"), "--eval-share: '1' given; allowed are finite numbers from 0 below 1"),
        ((*TRAIN, "--seed", "-1"), "--seed: '-1' given; allowed are whole numbers from 0 below 4294967296"),
        ((*TRAIN, "--dtype", "int8"), "--dtype: 'int8' given; allowed are auto, bfloat16, float32"),
        (("serve", "--port", "65536"), "--port: '65536' given; allowed are whole numbers from 0 to 65535"),
        (("serve", "--set", "port=1"), "--set 'port=1' is not of the form section.key=value"),
        (("ask", "a", "-n", "0"), "-n: '0' given; allowed are whole numbers from 1"),
        (("ask", "a", "--json-schema", "nowhere"), '"nowhere" for --json-schema'),
        (("bench", "soak", "--cancel-share", "2"), "--cancel-share: '2' given; allowed are finite numbers from 0 to 1"),
        (
            ("evaluate", "curve", "--log", "l", "--seed", "-1"),
            "--seed: '-1' given; allowed are whole numbers from 0 to 9",
        ),
        (("rounds", "--policy", "p"), "--reward"),
        (("log", "import", "--log", "l"), "FILES"),
        (("log", "records", "--log", "l", "--limit", "0"), "--limit: '0' given; allowed are whole numbers from 1"),
        (("harvest", "--dryrun", "f"), 'Invalid value "--dryrun" for FILE. There is no such flag.'),
        (("logs",), 'Unknown command "logs"'),
    ],
)
def test_a_usage_error_names_the_flag_and_what_is_allowed(words: tuple[str, ...], said: str) -> None:
    ended = run_bon(*words)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("bon: ") and said in ended.stderr, ended.stderr


def test_choices_that_are_named_here_are_those_there_are() -> None:
    formats = run_bon("log", "import", "f", "--log", "l", "--format", "csv").stderr
    assert f"allowed are {', '.join(IMPORT_FORMATS)}\n" in formats
    methods = run_bon("evaluate", "curve", "--log", "l", "--kl-method", "guess").stderr
    assert f"allowed are {', '.join(KlMethod)}\n" in methods
