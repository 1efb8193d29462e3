"""The command `bon`, which at its end says how much memory it took: `python -m benchmarks.curve_run evaluate curve …`.

The last line of stderr is its peak resident memory in KiB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bon_server.cli import main


def _peak_kib() -> int:
    """Of this process since its start. `getrusage` would count what its parent held before the start as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    try:
        main()
    finally:
        print(_peak_kib(), file=sys.stderr)  # noqa: T201
