"""The exported files are what `datasets` and TRL take for prompt-completion data."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.log.spool import Spool
from bon_server.offline.select import SelectOptions, select
from bon_server.selection import OfflineRule
from tests.log.records import ODD_TEXT, record, scored

READ = """
import sys
from datasets import load_dataset
from trl.data_utils import is_conversational
chat, text = (load_dataset("json", data_files=f"{sys.argv[1]}/{name}", split="train", cache_dir=sys.argv[2])
              for name in ("part-00000.jsonl", "part-00001.jsonl"))
assert chat.column_names == text.column_names == ["prompt", "completion"], chat.column_names
assert all(is_conversational(row) for row in chat) and not any(is_conversational(row) for row in text)
assert chat[0]["completion"] == [{"role": "assistant", "content": "answer 0"}], chat[0]
assert text[0]["completion"] == sys.stdin.read(), text[0]
"""


@pytest.mark.slow
def test_datasets_and_trl_read_both_forms(tmp_path: Path) -> None:
    """In a process of its own: importing TRL takes long and sets up logging and caches."""
    text = record("t", prompt_text="Once", prompt_messages=None, candidates=(scored(0, 0.5, text=ODD_TEXT),))
    with closing(Spool.open(tmp_path / "log")) as spool:
        spool.append([record("c"), text])
    select(SelectOptions((tmp_path / "log",), OfflineRule.BEST_PER_PROMPT, tmp_path / "out"))
    command = [sys.executable, "-c", READ, str(tmp_path / "out"), str(tmp_path / "cache")]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, input=ODD_TEXT, env=environment, capture_output=True, text=True, timeout=120, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
