"""Draws the diagrams of README and docs: `python -m docs.images.make_pictures`.

Boxes bring their own background, and lines and free text are mid-grey, so the pictures read on a white and on a dark
page. The same code always writes the same bytes; `tests/pages/test_pictures.py` compares them with the committed files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
INK = "#7d8590"  # contrast of at least 3.5 to 1 on white and on GitHub's dark background
CALLER, MODEL, CORE, DISK, OFFLINE = "#57606a", "#8250df", "#0969da", "#1a7f37", "#9a5700"
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""
HEAD = (
    '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 10 5 0 10z" fill="{INK}"/></marker></defs>'
)


@dataclass(frozen=True)
class Box:
    """A filled box; its first line is bold. Coordinates are those of the upper left corner, in pixels."""

    x: int
    y: int
    lines: tuple[str, ...]
    colour: str
    width: int = 130
    height: int = 62

    @property
    def right(self) -> tuple[int, int]:
        return self.x + self.width, self.y + self.height // 2

    @property
    def left(self) -> tuple[int, int]:
        return self.x, self.y + self.height // 2

    @property
    def top(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y

    @property
    def bottom(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height

    def svg(self) -> str:
        middle, first = self.x + self.width // 2, self.y + self.height // 2 + 5 - 9 * (len(self.lines) - 1)
        texts = "".join(
            text(middle, first + 18 * row, line, fill="#ffffff", bold=row == 0) for row, line in enumerate(self.lines)
        )
        shape = f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="7"'
        return f'{shape} fill="{self.colour}"/>{texts}'


def text(x: int, y: int, words: str, *, fill: str = INK, bold: bool = False, anchor: str = "middle") -> str:
    """One line of text, whose baseline is at `y`."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="13"{weight} text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'


def arrow(*points: tuple[int, int], dashed: bool = False) -> str:
    """A line through the points, with a tip at the last one."""
    path = " ".join(f"{x},{y}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.6"{dashes} marker-end="url(#tip)"/>'


def frame(x: int, y: int, width: int, height: int, title: str) -> str:
    """A dashed border with its title above."""
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="none" stroke="{INK}"'
    return f'{shape} stroke-dasharray="2 4"/>' + text(x + 4, y - 7, title, anchor="start")


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """The whole file."""
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    body = "\n".join([HEAD, *parts])
    return f'{start} role="img" {FONT}>\n<title>{escape(title)}</title>\n{body}\n</svg>\n'


def data_flow() -> str:
    """Online: from a prompt to an answer and a record. Offline: from the log to new weights."""
    client = Box(8, 62, ("Your program", "gRPC client"), CALLER, 114, 74)
    policy = Box(190, 62, ("Policy", "samples N", "(vLLM)"), MODEL, 120, 74)
    reward = Box(385, 62, ("Reward model", "scores each", "as it arrives"), MODEL, 130, 74)
    choose = Box(590, 62, ("Selection", "best of N"), CORE, 110, 74)
    log = Box(768, 62, ("Log", "all N candidates,", "fsync"), DISK, 140, 74)
    train = Box(190, 236, ("bon train", "SFT or DPO"), OFFLINE, 120, 74)
    select = Box(385, 236, ("bon select", "training set", "and manifest"), OFFLINE, 130, 74)
    evaluate = Box(590, 236, ("bon evaluate", "bon report"), OFFLINE, 110, 74)
    middle = policy.left[1]
    parts = [
        frame(170, 42, 745, 126, "online: bon serve, one server"),
        frame(170, 216, 745, 110, ""),
        *(box.svg() for box in (client, policy, reward, choose, log, train, select, evaluate)),
        arrow(client.right, policy.left),
        arrow(policy.right, reward.left),
        arrow(reward.right, choose.left),
        arrow(choose.right, log.left),
        text(347, middle - 8, "texts"),
        text(552, middle - 8, "rewards"),
        text(733, middle - 8, "record"),
        text(146, middle - 8, "prompt"),
        arrow((838, 62), (838, 16), (65, 16), (65, 62)),
        text(620, 32, "the best answer, sent after the record is on disk"),
        arrow((838, 136), (838, 200), (450, 200), (450, 236)),
        arrow((838, 200), (645, 200), (645, 236)),
        arrow(select.left, train.right),
        text(347, 265, "rows"),
        arrow(train.top, policy.bottom, dashed=True),
        text(258, 192, "new weights, without a restart", anchor="start"),
        text(802, 268, "offline: reads the log,"),
        text(802, 286, "also while the server writes it"),
    ]
    title = "A prompt becomes N candidates; each is scored; the log stores all; the best is the answer"
    return picture(925, 336, title, parts)


def request() -> str:
    """What one request passes, with the modules that do it."""
    steps = [
        ("1  Check the key", "serving/auth/access", "UNAUTHENTICATED, PERMISSION_DENIED", CORE),
        ("2  Receive", "serving/admission/receiving", "UNAVAILABLE, RESOURCE_EXHAUSTED", CORE),
        ("3  Parse, validate", "serving/rpc/service, parse, validate", "INVALID_ARGUMENT, FAILED_PRECONDITION", CORE),
        ("4  Tokenise", "models/vllm/policy, off the event loop", "INVALID_ARGUMENT", CORE),
        ("5  Look up request_id", "serving/attempt, log/spool", "stored answer, ABORTED, ALREADY_EXISTS", CORE),
        ("6  Wait for a permit", "serving/admission/permits, fair_queue", "UNAVAILABLE, RESOURCE_EXHAUSTED", CORE),
        ("7  best_of_n", "core/, models/", "UNAVAILABLE, INTERNAL", MODEL),
        ("8  Commit", "serving/content, log/spool", "UNAVAILABLE, RESOURCE_EXHAUSTED", DISK),
        ("9  Reply", "serving/rpc/respond", "", CORE),
    ]
    parts = [text(140, 18, "step", bold=True), text(265, 18, "where", bold=True, anchor="start")]
    parts.append(text(600, 18, "how a request can end here", bold=True, anchor="start"))
    for row, (name, module, ending, colour) in enumerate(steps):
        box = Box(40, 32 + 58 * row, (name,), colour, 200, 38)
        parts += [box.svg(), text(265, box.left[1] + 5, module, anchor="start")]
        if ending:
            parts += [arrow((550, box.left[1]), (592, box.left[1]), dashed=True)]
            parts += [text(600, box.left[1] + 5, ending, anchor="start")]
        if row + 1 < len(steps):
            parts.append(arrow(box.bottom, (box.bottom[0], box.bottom[1] + 20)))
    return picture(
        910, 546, "The nine steps of one request, the module of each, and the status codes it can end with", parts
    )


PICTURES = {"data_flow.svg": data_flow, "request.svg": request}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
