"""Rounds from end to end as processes: what they leave, what they refuse, and that they survive being killed anywhere.

Everything is real but the policy, its training and the KL; see `synthetic_rounds`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bon_server.log.read.reader import LogReader

PROMPTS, HELD_OUT, N = 12, 6, 4
LIMIT_S = 120.0
VERDICTS = """
def much(prompt, completion, context):
    return len(completion)

def long(prompt, completion, context):
    return len(completion) > 40
"""
pytestmark = pytest.mark.slow


class Run:
    """The command in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "run"
        self._started: list[subprocess.Popen[bytes]] = []
        for name, count in (("train", PROMPTS), ("held-out", HELD_OUT)):
            lines = [json.dumps({"question": f"{name} {i}", "answer": str(i)}) for i in range(count)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "first").mkdir(exist_ok=True)
        (folder / "verdicts.py").write_text(VERDICTS)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """One request at a time and a seed, so that two runs have the same samples in the same order."""
        root = Path(__file__).parents[3]
        words = [sys.executable, "-m", "tests.loop.rounds.synthetic_rounds", "rounds", "--policy", "first", "--json"]
        words += [
            "--reward",
            "function:verdicts:much",
            "--prompts",
            "train.jsonl",
            "--held-out",
            "held-out.jsonl",
            "--out",
            "run",
        ]
        words += ["--column", "prompt=question", "--column", "reward_context.answer=answer", "-n", str(N)]
        words += ["--gold", "function:verdicts:long", "--seed", "3", "--concurrency", "1", "--min-distinct", "0", *more]
        paths = [str(root), str(root / "clients/python")]
        with (self.folder / "stdout").open("wb") as stdout, (self.folder / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                words, cwd=self.folder, stdout=stdout, stderr=stderr, env=os.environ | {"PYTHONPATH": ":".join(paths)}
            )
        self._started.append(process)
        return process

    def finish(self, *more: str) -> dict[str, Any]:
        """Runs to the end."""
        assert self.start(*more).wait(LIMIT_S) == 0, self.said()
        document: dict[str, Any] = json.loads((self.folder / "stdout").read_text())
        return document

    def kill_all(self) -> None:
        """Leaves nothing running."""
        for process in self._started:
            process.kill()
            process.wait()

    def said(self) -> str:
        """What went to stderr."""
        return (self.folder / "stderr").read_text(errors="replace")[-3000:]

    def await_(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Waits for it while the process lives."""
        give_up_s = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < give_up_s, self.said()
            assert process.poll() is None, self.said()
            time.sleep(0.002)

    def server_pid(self, number: int) -> int:
        """The process that writes the log of a round."""
        return int((self.out / f"round-{number:02d}" / "log" / "writer.lock").read_text().split()[1])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that has not begun."""
    one = Run(tmp_path)
    yield one
    one.kill_all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run of two rounds that nobody disturbed, and its document."""
    one = Run(tmp_path_factory.mktemp("whole"))
    return one, one.finish("--rounds", "2")


def test_two_rounds_leave_what_they_say(whole: tuple[Run, dict[str, Any]]) -> None:
    run, told = whole
    assert [one["round"] for one in told["rounds"]] == [0, 1, 2]
    assert (told["finished"], told["stopped"]) == (True, None)
    assert json.loads((run.out / "rounds.json").read_text()) == told
    first, second = told["rounds"][1:]
    for one in (first, second):
        assert one["harvest"]["requests"] == PROMPTS
        assert one["harvest"]["candidates"] == PROMPTS * N
        assert one["selected"]["selected"] == PROMPTS
        assert one["training"]["from"] == "first"
        assert one["evaluation"]["held_out"]["sampled"]["prompts"] == HELD_OUT
        assert one["evaluation"]["kl_nats"]["mean"] == 0.25
    assert first["selected"]["eligible"] == PROMPTS * N
    assert second["selected"]["eligible"] == 2 * PROMPTS * N, "the best over both rounds is kept"


def test_figures_are_those_of_the_log(whole: tuple[Run, dict[str, Any]]) -> None:
    run, told = whole
    means, golds = [], []
    for number in range(3):
        with LogReader(run.out / f"round-{number:02d}" / "log") as reader:
            records = [one for one in reader.records() if one.tags.get("mode") == "sampled"]
        assert len(records) == HELD_OUT
        rewards = [one.reward for record in records for one in record.candidates if one.reward is not None]
        texts = [one.text for record in records for one in record.candidates]
        means.append(sum(rewards) / len(rewards))
        golds.append(sum(len(text) > 40 for text in texts) / len(texts))
        figures = told["rounds"][number]["evaluation"]["held_out"]["sampled"]
        assert figures["reward"]["mean"] == pytest.approx(means[-1])
        assert figures["gold"]["mean"] == pytest.approx(golds[-1])
    for number in (1, 2):
        against = told["rounds"][number]["evaluation"]["against_first"]["sampled"]
        assert against["reward"]["difference"] == pytest.approx(means[number] - means[0])
    best = told["best"]["round"]
    assert means[best] == max(means)
    expected = run.folder / "first" if best == 0 else run.out / f"round-{best:02d}/policy"
    assert (run.out / "best").resolve() == expected.resolve()


def test_held_out_prompts_are_never_trained_on(whole: tuple[Run, dict[str, Any]]) -> None:
    import pyarrow.parquet as pq

    run, _ = whole
    held_out, trained = set(), set()
    for number in (1, 2):
        with LogReader(run.out / f"round-{number:02d}" / "log") as reader:
            held_out |= {one.request_id for one in reader.records() if one.tags["split"] == "held-out"}
        meta = pq.read_table(run.out / f"round-{number:02d}" / "selected" / "meta.parquet")
        trained |= set(meta.column("request_id").to_pylist())
    assert len(held_out) == 2 * 2 * HELD_OUT
    assert trained
    assert not held_out & trained


def test_rounds_draw_samples_of_their_own(whole: tuple[Run, dict[str, Any]]) -> None:
    run, _ = whole
    ids, seeds = set(), set()
    for number in (1, 2):
        with LogReader(run.out / f"round-{number:02d}" / "log") as reader:
            some = [one for one in reader.records() if one.tags["split"] == "train"]
        ids |= {one.request_id for one in some}
        seeds |= {one.sampling.seed for one in some if one.sampling}
    assert len(ids) == 2 * PROMPTS
    assert len(seeds) == 2


def test_more_rounds_go_on_and_other_options_are_refused(whole: tuple[Run, dict[str, Any]]) -> None:
    run, told = whole
    before = _artefacts(run.out)
    assert run.finish("--rounds", "2") == told
    assert _artefacts(run.out) == before
    for more, words in (
        (("--temperature", "0.5"), "asking.temperature: null there, 0.5 given"),
        (("--from", "last"), 'start_from: "base" there, "last" given'),
        (("--train", "epochs=3"), 'training.epochs: null there, "3" given'),
    ):
        assert run.start("--rounds", "2", *more).wait(LIMIT_S) == 1
        assert words in " ".join(run.said().split())
    with (run.folder / "held-out.jsonl").open("a") as file:
        file.write('{"question": "new", "answer": "1"}\n')
    assert run.start("--rounds", "2").wait(LIMIT_S) == 1
    assert "held_out:" in run.said()


KILLS: dict[str, str] = {
    "the selection": "round-01/selected/.selecting",
    "the training": "round-01/.policy.training",
}
"""What is there when the process is killed."""
MORE_KILLS: dict[str, str] = {
    "the harvest": "round-01/log/writer.lock",
    "the evaluation": "round-01/held-out.json",
    "the first evaluation": "round-00/held-out.json",
    "the end of the harvest": "round-01/harvest.json",
    "the end of the training": "round-01/policy",
    "the end of the round": "round-01/evaluation.json",
}


@pytest.mark.parametrize("moment", [*KILLS, *(pytest.param(one, marks=pytest.mark.long) for one in MORE_KILLS)])
def test_a_killed_run_is_finished_by_the_same_command(moment: str, run: Run, whole: tuple[Run, dict[str, Any]]) -> None:
    process = run.start("--rounds", "1")
    run.await_((run.out / (KILLS | MORE_KILLS)[moment]).exists, process)
    process.kill()
    process.wait()
    told = run.finish("--rounds", "1")
    assert _without_times(told["rounds"]) == _without_times(whole[1]["rounds"][:2])
    assert _artefacts(run.out, rounds=1) == _artefacts(whole[0].out, rounds=1)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_no_server_outlives_it(sent: signal.Signals, code: int, run: Run) -> None:
    process = run.start("--rounds", "1")
    run.await_((run.out / "round-01/log/writer.lock").exists, process)
    run.await_(lambda: bool((run.out / "round-01/log/writer.lock").read_text()), process)
    server = run.server_pid(1)
    assert _lives(server)
    process.send_signal(sent)
    assert process.wait(LIMIT_S) == code, run.said()
    give_up_s = time.monotonic() + LIMIT_S
    while _lives(server):
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    assert "Traceback" not in run.said()


def test_two_at_a_time_are_refused(run: Run) -> None:
    first = run.start("--rounds", "1")
    run.await_((run.out / "round-00").exists, first)
    assert run.start("--rounds", "1").wait(LIMIT_S) == 1
    assert "is being written by another process" in run.said()


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _artefacts(out: Path, rounds: int = 2) -> dict[str, bytes]:
    """What must not depend on when a run was killed: the training sets, and what was made of them."""
    patterns = ("selected/part-*", "selected/meta.parquet", "policy/training.json", "evaluation.json")
    folders = [out / f"round-{number:02d}" for number in range(rounds + 1)]
    files = [path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def _without_times(rounds: list[dict[str, Any]]) -> str:
    told = json.loads(json.dumps(rounds))
    for one in told:
        one.get("harvest", {}).pop("seconds", None)
        one.pop("policy")
    return json.dumps(told)
