"""Writes the tables of docs/faults.md: `python -m tests.faults.write_page`."""

from __future__ import annotations

from tests.faults.catalogue import tables
from tests.faults.test_catalogue import BEGIN, END, PAGE

text = PAGE.read_text(encoding="utf-8")
before, _, rest = text.partition(BEGIN)
_, _, after = rest.partition(END)
PAGE.write_text(before + BEGIN + tables() + END + after, encoding="utf-8")
