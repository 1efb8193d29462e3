"""docs/promises.md, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"
EXPECTED = [
    r"\d{3,} acknowledged, \d{3,} logged, [1-9]\d* segments",
    r"acknowledged and not logged: 0\n",
    r"logged twice: 0\n",
    r"RESOURCE_EXHAUSTED",
    r"full-0 replayed\nfull-1 replayed\nfull-2 replayed\n\d+ answered, lost: 0\n",
    r"again-0 *\nagain-1 *\nagain-0 replayed\nagain-1 replayed\nagain-0 replayed\nagain-1 replayed\n",
    r"segment_changed",
    r"reading stops",
    r"left out: .*damaged",
    r"imported +0",
    r'"line":2',
    r"stale_snapshots.*with-wanda",
    r"\n0\nin no file\n",
    r"snapshot_stale",
]


@pytest.mark.slow
@pytest.mark.long
def test_the_page_shows_what_it_says(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = "\n".join(blocks)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}",
        "TMPDIR": str(tmp_path),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    seen = done.stdout + done.stderr
    assert done.returncode == 0, seen
    for expected in EXPECTED:
        assert re.search(expected, seen), (expected, seen)
