"""The commands of docs/security.md work, in the order in which they stand there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bon_server.log.read.reader import LogReader

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
START_S = 60.0

pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page uses openssl")
def test_the_commands_work(tmp_path: Path) -> None:
    certificate, keys, serve, ask, change = blocks("bash")
    (python,) = blocks("python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = tmp_path / "bin" / "bon"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bon_server.cli "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BON_")}
    environment["PATH"] = f"{command.parent}:{Path(sys.executable).parent}:{environment['PATH']}"

    def run(script: str) -> str:
        words = ["bash", "-euo", "pipefail", "-c", script.replace("50051", port)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=START_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(certificate)
    assert "prometheus" in run(keys)
    words = f"exec {serve.strip().replace('50051', port)} --metrics-port 0 --ready-file ready"
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(["bash", "-c", words], cwd=tmp_path, env=environment, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_S
            while not (tmp_path / "ready").exists():
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
                time.sleep(0.05)
            assert run(ask).count("scored") == 2
            assert run(f"{sys.executable} - <<'END'\n{python}\nEND").strip()
            run(change)
        finally:
            server.terminate()
            server.wait(START_S)
    assert "TLS, keys of keys.toml, reachable from other machines" in (tmp_path / "said").read_text()
    with LogReader(tmp_path / "log") as reader:
        assert [record.principal for record in reader.records()] == ["search"] * 3
