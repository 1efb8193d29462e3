"""The help of every verb and flag: sentences, with their default, quickly, and of one place."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import bon
import pytest
from rich.console import Console

from bon_server import __version__
from bon_server.cli import app
from bon_server.cli.options import Access
from tests.command import run_bon

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "pyarrow", "scipy", "trl", "transformers", "numpy", "grpc")
VERBS = {
    *("serve", "ask", "harvest", "health", "keys new", "keys list", "keys revoke"),
    *("log stats", "log seal", "log publish", "log snapshot", "log verify", "log erase", "log expire"),
    *("log records", "log import", "evaluate curve", "evaluate kl", "evaluate headroom", "evaluate compare"),
    *("report", "rescore", "select", "train", "rounds", "doctor", "bench soak", "demo", "demo evaluate"),
}
ROW = re.compile(r"│ (?P<required>\*)?\s*(?P<names>(?:-|[A-Z]).*?)\s{2,}(?P<help>.*?)\s*│")


class Row(NamedTuple):
    """One line of a help, as it is shown."""

    verb: str
    names: str
    text: str
    notes: str
    """What the library adds: `[choices: …] [default: …]`."""


def groups(words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that there is, those that only hold others included."""
    yield words
    place = app
    for word in words:
        place = place[word]
    for name in place:
        if not name.startswith("-"):
            yield from groups((*words, name))


def help_of(words: tuple[str, ...]) -> str:
    """As a very wide terminal shows it."""
    shown = io.StringIO()
    app.help_print(list(words), console=Console(file=shown, width=2000))
    return shown.getvalue()


def rows() -> Iterator[Row]:
    """All of all verbs."""
    for words in groups():
        for found in ROW.finditer(help_of(words)):
            text, notes = re.fullmatch(r"(.*?)((?: ?\[(?:choices|default|required).*\])*)", found["help"]).groups()  # type: ignore[union-attr]
            yield Row(" ".join(words), found["names"], text, notes)


ROWS = list(rows())


def test_there_are_all_verbs() -> None:
    found = {" ".join(words) for words in groups()}
    assert found >= VERBS
    assert found - VERBS == {"", "keys", "log", "evaluate", "bench"}
    assert len(ROWS) > 200, "flags and arguments"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.verb} {row.names}")
def test_a_help_line_is_a_sentence_that_says_the_default(row: Row) -> None:
    assert re.fullmatch(r"[A-Z].*\.", row.text), row
    assert len(row.text.split()) >= 3 and "<" not in row.names, row
    if "[required]" not in row.notes and row.names not in ("--help (-h)", "--version", "--install-completion"):
        assert "[default: " in row.notes or re.search(r"\b(Default: |no default\b)", row.text), row
    assert not re.search("None|False|=", row.notes), "defaults are words, not Python"


@pytest.mark.parametrize("words", list(groups()), ids=" ".join)
def test_a_verb_says_what_it_does(words: tuple[str, ...]) -> None:
    usage, _, first, *_ = help_of(words).splitlines()
    assert usage.startswith(f"Usage: {' '.join(('bon', *words))}".rstrip()), usage
    assert re.fullmatch(r"[A-Z].*\.", first.rstrip()), first


def test_help_imports_nothing_that_takes_long() -> None:
    commands = [[*words, "--help"] for words in groups()]
    script = f"import sys\nfrom bon_server.cli import main\nfor words in {commands!r}: main(words)\n"
    script += f"heavy = set({HEAVY!r}) & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_verb_is_imported_when_it_is_called() -> None:
    script = "import sys\nfrom bon_server.cli import main\nmain(['select', '--help'])\n"
    script += "verbs = {name for name in sys.modules if name.startswith('bon_server.cli.')}\n"
    script += "assert verbs == {f'bon_server.cli.{name}' for name in ('offline', 'options', 'show')}, verbs"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_version() -> None:
    said = run_bon("--version")
    assert (said.exit_code, said.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize("words", [(), ("log",), ("keys",)])
def test_a_missing_verb_is_a_usage_error_that_shows_the_help(words: tuple[str, ...]) -> None:
    said = run_bon(*words)
    assert said.exit_code == 2 and "Usage: bon" in said.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs_and_flags(shell: Literal["bash", "zsh", "fish"]) -> None:
    script = app.generate_completion(shell=shell)
    assert "rounds" in script and "held-out" in script and "random-top-k-overall" in script


def test_a_client_gets_in_with_flags_of_all_that_it_takes() -> None:
    assert bon.Security.__annotations__.keys() - Access.__dataclass_fields__.keys() == {"api_key"}, "never a flag"
    assert Access.__dataclass_fields__.keys() <= bon.Security.__annotations__.keys()
