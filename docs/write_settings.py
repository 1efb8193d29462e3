"""Writes docs/settings.md from the configuration's types and docstrings: `python -m docs.write_settings`.

`tests/pages/test_settings_page.py` fails when the page is not what this writes.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from msgspec import Meta

from bon_server.config.settings import Config

PAGE = Path(__file__).parent / "settings.md"
BEGINNING = """# Settings

Every setting of `bon serve`, with its default, the values it accepts, and its meaning. `python -m docs.write_settings`
writes this page from the source, and a test checks that it is current: do not edit it.
[Operating](operating.md#settings-that-matter) explains the few settings that most operators change.

A setting can be given in four places. The first one that has it wins:

| place | example |
|---|---|
| command line | `--set limits.max_n=64` |
| environment | `BON_LIMITS_MAX_N=64` |
| TOML file of `--config` | `max_n = 64` under `[limits]` |
| default | the column *default* below |

The server does not start with an unknown key or a value out of range. Durations ending in `_s` are in seconds, those in
`_ms` in milliseconds; sizes ending in `_bytes` are in bytes. *Unset* means that the setting has no value until you give
one.
"""


def page() -> str:
    """The whole text of the page."""
    hints = get_type_hints(Config)
    return BEGINNING + "".join(_section(section.name, hints[section.name]) for section in fields(Config))


def _section(name: str, kind: Any) -> str:
    meanings = _docstrings(kind)
    hints = get_type_hints(kind, include_extras=True)
    rows = [
        f"| `{name}.{key.name}` | {_default(key)} | {_cell(allowed(hints[key.name]))} | {_cell(meanings[key.name])} |"
        for key in fields(kind)
    ]
    head = "| key | default | accepts | meaning |\n|---|---|---|---|\n"
    return f"\n## {name}\n\n{inspect.getdoc(kind)}\n\n{head}" + "\n".join(rows) + "\n"


def _docstrings(kind: type[Any]) -> Mapping[str, str]:
    """By the name of a field, the string below it. Raises KeyError later for a field that has none."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    return dict(_documented(definition.body))


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            yield (
                field.target.id,
                inspect.cleandoc(str(after.value.value)).replace("; None: ", ". None: ").replace("None: ", "Unset: "),
            )


def _default(key: Field[Any]) -> str:
    value = key.default if key.default_factory is MISSING else key.default_factory()
    if value is None or value in ("", (), {}):
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"`{value}` ({value >> 20} MiB)"
    if isinstance(value, int) and value >= 1 << 10 and value % (1 << 10) == 0 and key.name.endswith("bytes"):
        return f"`{value}` ({value >> 10} KiB)"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def allowed(hint: Any) -> str:
    """The values that a type accepts, for people."""
    if get_origin(hint) is Annotated:
        base, *metas = get_args(hint)
        ranges = [_range(meta) for meta in metas if isinstance(meta, Meta)]
        return " ".join([allowed(base), *filter(None, ranges)])
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(allowed(part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return "list of " + allowed(get_args(hint)[0]) + "s"
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return f"table of {allowed(get_args(hint)[1])}s"
    return {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}[hint]


def _range(meta: Meta) -> str:
    low = f"≥ {_number(meta.ge)}" if meta.ge is not None else f"> {_number(meta.gt)}" if meta.gt is not None else ""
    high = f"≤ {_number(meta.le)}" if meta.le is not None else f"< {_number(meta.lt)}" if meta.lt is not None else ""
    return ", ".join(filter(None, (low, high)))


def _number(value: float) -> str:
    return f"{value:g}" if value < 1_000_000 else f"{value:,.0f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
