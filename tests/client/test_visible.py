"""Text that a terminal would obey, or that its encoding lacks: wherever commands and clients show it."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import bon
import grpc
import pytest

import bon_server
from bon_server.core.types import Candidate
from bon_server.evaluate.report.page import escaped
from bon_server.log.feedback import Feedback, record_feedback
from bon_server.log.record import Record
from bon_server.log.seal.sealing import seal
from bon_server.log.spool.spool import Spool
from tests.client.fake_server import FakeService, Refusal
from tests.log.records import record, scored

pytestmark = pytest.mark.slow

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m \u202edesrever\u2066 \x7f\u2028"
    "[bold]plain[/bold] [link=http://x]y[/link] :smile:\r!"
)
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Written out here: the code's own table is what is tested."""
MARKUP = "[bold]plain[/bold]"
ROOT = Path(bon_server.__file__).parents[1]


def bon_command(*words: str | bytes | Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `bon` with these words."""
    settings = {**os.environ, "COLUMNS": "1000", **environment}
    command = [sys.executable, "-m", "bon_server.cli", *words]
    done = subprocess.run(command, env=settings, capture_output=True, timeout=120)
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


async def shown(*words: str | bytes | Path, **environment: str) -> tuple[int, str, str]:
    """The same, while the event loop of a server in this process runs on."""
    return await asyncio.to_thread(bon_command, *words, **environment)


def is_harmless(*texts: str) -> None:
    """Nothing in it is obeyed, by a terminal or by rich."""
    for text in texts:
        assert not OBEYED.search(text), repr(text)
        assert "Traceback" not in text


ASKING = {
    "ask": (),
    "ask --all": ("--all",),
    "ask --stream": ("--stream",),
    "ask --json": ("--json", "--all"),
    "ask --stream --json": ("--json", "--stream"),
}


@pytest.mark.parametrize("options", ASKING.values(), ids=ASKING)
async def test_completions(service: FakeService, target: str, options: tuple[str, ...]) -> None:
    code, out, said = await shown("ask", HOSTILE, "-n", "2", "--target", target, *options)
    assert code == 0
    is_harmless(out, said)
    if "--json" in options:
        assert json.loads(out)["best"]["text"].startswith(HOSTILE)
        return
    assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m" in out and "\\u202edesrever" in out and "\\x7f" in out
    assert MARKUP in out and "[link=http://x]" in out and ":smile:" in out, "what looks like markup is text"


async def test_words_of_a_server(service: FakeService, target: str, tmp_path: Path) -> None:
    refused = Refusal(grpc.StatusCode.FAILED_PRECONDITION, details=f"no {HOSTILE}")
    service.refusal_by_prompt["refused"] = refused
    code, out, said = await shown("ask", "refused", "--target", target)
    assert code == 1 and said.startswith("bon: FAILED_PRECONDITION: no \\x1b]0;owned")
    is_harmless(out, said)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "refused"}) + "\n", encoding="utf-8")
    code, out, said = await shown("harvest", prompts, "--target", target)
    assert code == 1 and "line 1: FAILED_PRECONDITION: no \\x1b]0;owned" in said and MARKUP in said
    is_harmless(out, said)


async def test_lines_of_a_harvest_that_are_wrong(target: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "x", HOSTILE: 1}, {"prompt": "x", "id": HOSTILE}, {"prompt": [{"role": HOSTILE}]}]
    prompts.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    for more in ([], ["--dry-run"], ["--json"], ["--dry-run", "--json"]):
        _, out, said = await shown("harvest", prompts, "--target", target, *more)
        is_harmless(out, said)


def _hostile_record() -> Record:
    candidates: tuple[Candidate, ...] = (scored(0, 1.0, text=HOSTILE), scored(1, 0.5, text="\u00e9 \x85"))
    return record(
        "r", prompt_text=HOSTILE, candidates=candidates, tags={HOSTILE: HOSTILE}, reward_context={"a": HOSTILE}
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """One record, one observation; and a file that has no business there."""
    folder = tmp_path / "log"
    with closing(Spool.open(folder)) as spool:
        spool.append([_hostile_record()])
        now = datetime.now(UTC)
        seen = Feedback(
            feedback_id="f", request_id="r", attempt=1, candidate_index=None, name="n", value=HOSTILE, created_at=now
        )
        record_feedback(spool, seen)
        seal(spool, 1 << 20, 0.0)
    (folder / "segments" / HOSTILE.replace("/", "")).write_bytes(b"")
    return folder


LOG_COMMANDS = {
    "records": ("log", "records", "--log", "LOG"),
    "records --long": ("log", "records", "--log", "LOG", "--long"),
    "records --feedback": ("log", "records", "--log", "LOG", "--feedback"),
    "verify": ("log", "verify", "--log", "LOG"),
    "verify --json": ("log", "verify", "--log", "LOG", "--json"),
    "stats": ("log", "stats", "--log", "LOG"),
    "a log that is not there": ("log", "stats", "--log", HOSTILE),
    "erase a tag": ("log", "erase", "--log", "LOG", "--tag", HOSTILE.replace("=", "")),
    "erase": ("log", "erase", "--log", "LOG", "--request-id", HOSTILE),
    "a name of a snapshot": ("log", "snapshot", HOSTILE, "--log", "LOG"),
    "a format": ("log", "import", "LOG", "--log", "OUT", "--format", HOSTILE),
    "select": ("select", "--log", "LOG", "--rule", "best-per-prompt", "--out", "OUT" + HOSTILE.replace("/", "")),
    "select by a name": ("select", "--log", "LOG", "--rule", "best-per-prompt", "--out", "OUT", "--reward", HOSTILE),
    "curve": ("evaluate", "curve", "--log", "LOG", "--value", HOSTILE),
    "kl": ("evaluate", "kl", "--log", "LOG", "--reward-model", HOSTILE),
    "compare": ("evaluate", "compare", "LOG", HOSTILE),
    "doctor": ("doctor", "--log", HOSTILE),
    "doctor --json": ("doctor", "--log", HOSTILE, "--json"),
    "a setting": ("serve", "--policy", "synthetic", "--set", f"limits.max_n={HOSTILE}"),
    "a model": ("serve", "--reward", "synthetic", "--log", "OUT", "--policy", HOSTILE),
    "a name of a key": ("keys", "new", HOSTILE, "--file", "OUT", "--rights", "generate"),
    "a file of keys": ("keys", "list", "--file", HOSTILE),
}


@pytest.mark.parametrize("words", LOG_COMMANDS.values(), ids=LOG_COMMANDS)
def test_what_commands_read_and_quote(log: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    places = {"LOG": str(log), "OUT": str(tmp_path / "out")}
    code, out, said = bon_command(*(re.sub("^(LOG|OUT)", lambda match: places[match[1]], word) for word in words))
    assert out or said or code == 0
    is_harmless(out, said)
    if words[1] == "records":
        found = json.loads(out.split("\n")[0])
        assert HOSTILE in (found.get("text"), found.get("candidates", [{}])[0].get("text"))


def test_a_report(log: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert bon_command("report", "--log", log, "--out", page)[0] == 0
    is_harmless(page.read_text(encoding="utf-8"))
    assert escaped("a\r\nb\x9b") == "a\nb\\x9b"


ENCODINGS = ["ascii", "latin-1", "ascii:strict", "cp1252"]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_an_encoding_that_lacks_characters(target: str, encoding: str) -> None:
    for options in ((), ("--all",), ("--stream",), ("--json",)):
        words = ("ask", "\u0416 \U0001f680 " + "x" * 80, "-n", "2", "--target", target, *options)
        code, out, said = await shown(*words, PYTHONIOENCODING=encoding)
        assert code == 0, said
        is_harmless(out, said)
        assert json.loads(out)["best"]["text"].startswith("\u0416 ") if options == ("--json",) else "\\u0416" in out


NOT_UTF_8 = {
    "prompt": ("ask", b"caf\xe9"),
    "raw prompt": ("ask", "--raw", b"caf\xe9"),
    "regex": ("ask", "hi", "--regex", b"caf\xe9"),
    "choice": ("ask", "hi", "--choice", b"caf\xe9"),
    "tag": ("harvest", "PROMPTS", "--tag", b"a=caf\xe9"),
    "system": ("harvest", "PROMPTS", "--system", b"caf\xe9"),
}


@pytest.mark.parametrize("words", NOT_UTF_8.values(), ids=NOT_UTF_8)
async def test_arguments_that_are_not_utf_8(target: str, tmp_path: Path, words: tuple[str | bytes, ...]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n', encoding="utf-8")
    given = [str(prompts) if word == "PROMPTS" else word for word in words]
    code, out, said = await shown(*given, "-n", "1", "--target", target)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"bon: an argument or .* is not UTF-8 \(surrogates not allowed, character \d+\)\n", said), said


def test_every_control_is_made_visible_and_nothing_else() -> None:
    """Bidirectional controls are those that Unicode names so, and its marks."""
    marks = {"\u061c", "\u200e", "\u200f"}
    for code in range(0x110000):
        character = chr(code)
        obeyed = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in marks
        obeyed |= unicodedata.bidirectional(character) in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )
        assert (bon.visible(character) != character) == obeyed, hex(code)
    assert bon.visible("a\tb\r\n\u200d") == "a\\tb\\r\\n\u200d"
    assert bon.visible("a\tb\r\n\rc", lines=True) == "a\tb\n\\rc"


def test_json_keeps_its_meaning() -> None:
    document = {"text": "".join(map(chr, range(0x2100))), "lone": "\ud800"}
    for ascii_only in (False, True):
        told = bon.visible_json(json.dumps(document, ensure_ascii=ascii_only, indent=1))
        assert json.loads(told) == document
        assert not OBEYED.search(told)


def test_the_example_in_node_escapes_the_same_characters() -> None:
    source = (ROOT / "clients" / "node" / "ask.mjs").read_text(encoding="utf-8")
    found = re.search(r"const OBEYED = /(\[.*\])/g;", source)
    assert found is not None
    its_own = re.compile(found[1])
    texts = [chr(code) for code in range(0xD800)]  # JSON.stringify itself escapes lone surrogates
    assert [one for one in texts if its_own.match(one)] == [one for one in texts if bon.visible(one) != one]


def _printing(path: Path) -> Iterator[str]:
    """What in a module prints by itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.console", "rich.text", "rich.markup"):
            yield from (
                f"{path.name}: {name.name}" for name in node.names if name.name not in ("Group", "RenderableType")
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path.name}: print"


def test_only_one_module_prints() -> None:
    allowed = {"terminal.py", "grammar_trial.py"}  # the second one answers its parent process through a pipe
    modules = (path for path in (ROOT / "bon_server").rglob("*.py") if path.name not in allowed)
    assert [what for path in modules for what in _printing(path)] == []
