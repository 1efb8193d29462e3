"""What tells two runs apart, for the sentence that refuses to go on with another one."""

from __future__ import annotations

import json
from typing import Any


def differences(there: Any, asked: Any, name: str = "") -> list[str]:
    """`name.of.a.value: VALUE there, VALUE given` for each value of two JSON documents that differs; null: missing."""
    if isinstance(there, dict) and isinstance(asked, dict):
        inside = f"{name}." if name else ""
        return [
            one
            for key in sorted(there.keys() | asked.keys())
            for one in differences(there.get(key), asked.get(key), inside + key)
        ]
    return [] if there == asked else [f"{name}: {json.dumps(there)} there, {json.dumps(asked)} given"]
