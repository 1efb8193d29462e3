"""Every example of the Python client's page runs as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages.pasting import ROOT, environment, examples, run_python
from tests.serving.guarded import Guard
from tests.serving.processes import Serve

PAGE = ROOT / "clients" / "python" / "README.md"
OPEN = 'import bon\nclient = bon.Client("127.0.0.1:50051")\n'
"""The page says that its later examples assume this."""

pytestmark = pytest.mark.slow


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started = Serve(tmp_path)
    yield started
    started.close()


def port(address: str) -> str:
    return address.rpartition(":")[2]


def test_the_examples_run(serve: Serve, tmp_path: Path) -> None:
    variables = environment(tmp_path)
    open_server = port(serve().address)
    plain = [text for language, text in examples(PAGE) if "tls_ca" not in text]
    assert len(plain) >= 7
    for text in plain:
        whole = text if "import bon" in text else OPEN + text
        run_python(whole.replace("50051", open_server), tmp_path, variables)


def test_the_example_with_tls_and_a_key_runs(serve: Serve, tmp_path: Path) -> None:
    guard = Guard.of(tmp_path)
    (tmp_path / "client.key").write_text(guard.key())
    settings = [word for name, value in guard.settings.items() for word in ("--set", f"{name}={value}")]
    guarded = port(serve("synthetic", *settings).address)
    (tmp_path / "ca.pem").write_bytes(guard.authority.file.read_bytes())
    (text,) = (text for _, text in examples(PAGE) if "tls_ca" in text)
    whole = f"import bon\n{text}".replace("50051", guarded)
    assert run_python(whole, tmp_path, environment(tmp_path)).strip()


def test_every_example_is_python() -> None:
    assert {language for language, _ in examples(PAGE)} == {"python"}
