"""The report as one HTML page. Everything that comes from a log goes through `escaped`.

Figures have as many digits as their interval bears, and a minus sign that is one.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from bon.visible import visible

from bon_server.evaluate.report.likes import Liking
from bon_server.evaluate.report.sample import SampledCandidate, SampledRequest

MOST_DECIMALS = 6


def number(value: float | None, around: Sequence[float] | None = None) -> str:
    """A figure by itself; with an interval around it, as many decimals as that bears, else three digits."""
    if value is None:
        return "–"
    decimals = _decimals(around)
    return with_minus(f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}")


def interval(around: Sequence[float] | None) -> str:
    """`[low, high]`, never broken over two lines; empty when there is none."""
    return "" if around is None else "[" + ",\u00a0".join(number(bound, around) for bound in around) + "]"


def with_interval(value: float | None, around: Sequence[float] | None) -> str:
    """`figure [low, high]`."""
    return f"{number(value, around)} {interval(around)}".strip()


def share(value: float | None, around: Sequence[float] | None) -> str:
    """A share and its interval in per cent."""
    if value is None:
        return "–"
    low_high = "" if around is None else " [" + ",\u00a0".join(f"{100 * bound:.1f}" for bound in around) + "]"
    return f"{100 * value:.1f} %{low_high}"


def _decimals(around: Sequence[float] | None) -> int | None:
    """One digit of half the width of an interval, two where the first is small (the rule of the Particle Data Group).

    None: there is no interval, or nothing between its bounds, or it needs more decimals than anybody reads.
    """
    half = 0.0 if around is None else (around[1] - around[0]) / 2
    if not 0 < half < math.inf:
        return None
    exponent = math.floor(math.log10(half))
    decimals = max(0, -exponent + (half / 10.0**exponent < 3.55))
    return decimals if decimals <= MOST_DECIMALS else None


def with_minus(text: str) -> str:
    """A number's text with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


SHOWN_CHARACTERS = 1_200


def escaped(text: object) -> str:
    """Text as HTML shows it, whatever it holds; HTML allows few control characters."""
    return html.escape(visible(str(text), lines=True))


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """The whole document."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escaped(title)}</h1><p class="soft">{escaped(lead)}</p></header>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A part of the page; empty when nothing is in it."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{escaped(heading)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """Plain text."""
    return f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"


def cards(figures: Iterable[tuple[str, str, str]]) -> str:
    """Large figures, each with what it is and what to know of it."""
    boxes = [
        f'<div class="card"><span>{escaped(what)}</span><b>{escaped(figure)}</b><span>{escaped(note)}</span></div>'
        for what, figure, note in figures
    ]
    return f'<div class="cards">{"".join(boxes)}</div>'


def pictures(drawn: Iterable[tuple[str, str]], first: int = 1) -> str:
    """SVGs with their captions, numbered from `first`, side by side where there is room."""
    figures = [
        f"<figure>{svg}<figcaption><em>Figure {of}.</em> {escaped(caption)}</figcaption></figure>"
        for of, (svg, caption) in enumerate(drawn, start=first)
    ]
    return f'<div class="grid">{"".join(figures)}</div>'


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, which scrolls sideways where it is too wide."""
    head = "".join(f"<th>{escaped(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    """Names with what they stand for."""
    return "<dl>" + "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(what)}</dd>" for name, what in pairs) + "</dl>"


def likings(heading: str, found: Sequence[Liking], quoted: bool) -> str:
    """What winners have more or less often."""
    if not found:
        return ""
    rows = [
        (
            f"“{one.what}”" if quoted else one.what,
            f"{one.winners:.0%}",
            f"{one.others:.0%}",
            with_minus(f"{one.difference:+.0%}"),
        )
        for one in found
    ]
    return f"<div><h3>{escaped(heading)}</h3>{table(['', 'winners', 'others', 'difference'], rows)}</div>"


def example(request: SampledRequest, value: str | None) -> str:
    """A prompt with its winner and its loser, side by side."""
    best, worst = request.scored[0], request.scored[-1]
    answers = _answer("winner", best, value) + _answer("loser", worst, value)
    prompt = f'<div class="text prompt" dir="auto">{_cut(request.prompt)}</div>'
    return f'<div class="example">{prompt}<div class="pair">{answers}</div></div>'


def _answer(which: str, candidate: SampledCandidate, value: str | None) -> str:
    said = [which, f"reward {number(candidate.reward)}"]
    if value is not None and value in candidate.rewards:
        said.append(f"{value} {number(candidate.rewards[value])}")
    if candidate.finish_reason is not None:
        said.append(candidate.finish_reason)
    head = f'<div class="soft">{escaped(" · ".join(said))}</div>'
    return f'<div class="answer {which}">{head}<div class="text" dir="auto">{_cut(candidate.text)}</div></div>'


def _cut(text: str) -> str:
    more = len(text) - SHOWN_CHARACTERS
    return escaped(text) if more <= 0 else f"{escaped(text[:SHOWN_CHARACTERS])} … ({more} more characters)"
