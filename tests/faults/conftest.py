"""How many cases ran, and nothing of them with the event loop."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.serving.conftest import nothing_unhandled as nothing_unhandled


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many cases of the catalogue ran and how they ended, and how many messages were made up."""
    passed, failed = (
        {one.nodeid for one in terminalreporter.stats.get(outcome, []) if "::test_fault[" in one.nodeid}
        for outcome in ("passed", "failed")
    )
    if passed or failed:
        terminalreporter.write_line(
            f"fault catalogue: {len(passed | failed)} cases run, {len(passed - failed)} passed, {len(failed)} failed"
        )
    for what in ("fuzzed", "fuzzed through gRPC"):
        codes: Counter[str] = Counter()
        for one in terminalreporter.stats.get("passed", []):
            codes.update(dict(one.user_properties).get(what, {}))
        if codes:
            terminalreporter.write_line(f"{what}: {codes.total()} messages: {_each(codes)}")


def _each(codes: Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in codes.most_common())
