"""`bon rounds` without a model: the real command, servers, logs and selections, with training and KL made up.

Run as a process, so that it can be killed: `python -m tests.loop.rounds.synthetic_rounds rounds …`.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bon_server.cli import main
from bon_server.loop.rounds.kl import kl_of_texts
from bon_server.loop.server_process import serving
from bon_server.offline.train.options import TrainOptions
from bon_server.system.files import whole_file

TRAINING_S = 0.5


@contextmanager
def synthetic_serving(arguments: Sequence[str], folder: Path) -> Iterator[str]:
    """A server with a synthetic policy in the place of any other; each round says twice as much as the one before."""
    words = list(arguments)
    place = words.index("--policy") + 1
    trained = re.search(r"round-(\d+)", words[place])
    words[place] = f"synthetic:tokens={8 << int(trained[1]) if trained else 8},tokens_per_s=400"
    server: AbstractContextManager[str] = serving(words, folder)
    with server as address:
        yield address


def made_up(function: Any, *arguments: Any, tell: Callable[[Any], None]) -> Any:
    """In the place of the child that trains, and of the one that measures the KL."""
    if function is kl_of_texts:
        return [0.25 for _ in arguments[2]]
    options: TrainOptions = arguments[0]
    work = options.out.with_name(f".{options.out.name}.training")
    work.mkdir(exist_ok=True)
    time.sleep(TRAINING_S)
    data = sorted(options.data.glob("part-*"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in data)).hexdigest()
    document = {"run": {"data": digest, "policy": str(options.policy)}, "metrics": {"rows": len(data)}}
    with whole_file(work / "training.json") as file:
        file.write(json.dumps(document).encode())
    work.rename(options.out)
    return document


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    with patch.multiple("bon_server.loop.rounds.steps", serving=synthetic_serving, in_child=made_up):
        main()
