"""The page is one whole file, shows what the log holds and nothing that a log could make it do."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.types import Budget, Kind, ModelRef, Outcome
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.reading import LogSource
from bon_server.evaluate.report.likes import features, words
from bon_server.evaluate.report.page import escaped, number
from bon_server.evaluate.report.report import report
from bon_server.evaluate.report.sample import SampledCandidate, SampledRequest, sample_requests
from tests.evaluate.logs import imported, made_lines, written
from tests.log.records import ODD_TEXT, record, scored
from tests.offline.rescore.rescoring import commit, rescored, sampled, synthetic_reward

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'</div></body>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class _Reader(HTMLParser):
    """Collects tags, attributes and text, and holds that tags are closed in order."""

    VOID = ("meta", "br", "img", "link", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(log: Path, **options: Any) -> tuple[_Reader, str]:
    out = log.parent / "report.html"
    report(CurveOptions(LogSource((log,)), **options), out)
    source = out.read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(source)
    assert not reader.open
    return reader, source


def test_everything_is_there_and_nothing_is_fetched(tmp_path: Path) -> None:
    lines = [one | {"responses": ["x" * (i + 1) for i in range(6)]} for one in made_lines(60)]
    reader, source = page(imported(tmp_path, lines), value="gold")
    assert reader.tags.count("svg") == 6
    for heading in ("What choosing gains", "Which n is worth it", "The rewards", "Winners and losers", "provenance"):
        assert heading in reader.text
    assert "gold of the best of 6" in reader.text and "Fit of Gao et al." in reader.text
    assert {"script", "link", "img", "iframe"}.isdisjoint(reader.tags)
    fetched = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href") and value]
    assert all(value.startswith("#") for value in fetched)
    assert not re.search(r"url\((?!#)|@import", source)


def test_a_log_cannot_write_the_page(tmp_path: Path) -> None:
    hostile = [
        record(f"r{i}", prompt_text=HOSTILE + ODD_TEXT, candidates=(scored(0, 1.0, text=HOSTILE), scored(1, i + 2.0)))
        for i in range(3)
    ]
    reader, source = page(written(tmp_path, hostile))
    assert "script" not in reader.tags and "img" not in reader.tags
    assert HOSTILE in reader.text  # as text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", source)
    assert escaped("a\0b\x9b") == "a\\x00b\\x9b"


def test_pictures_are_numbered_and_say_what_their_bands_are(tmp_path: Path) -> None:
    lines = [one | {"responses": ["x" * (i + 1) for i in range(6)]} for one in made_lines(60)]
    _, source = page(imported(tmp_path, lines), value="gold")
    captions = re.findall(r"<figcaption><em>Figure (\d)\.</em> (.*?)</figcaption>", source)
    assert [int(number) for number, _ in captions] == [1, 2, 3, 4, 5, 6]
    assert all(re.search("Bands?:? |Bars: |areas", caption) for _, caption in captions)


def test_added_scores_are_shown_with_the_answers(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(60))
    rescored(log, name="gold")
    shown = sample_requests(LogSource((log,)), scores=("gold",))
    assert shown
    for one in (one for request in shown for one in request.candidates):
        assert one.rewards["gold"] == synthetic_reward(one.text)
    reader, _ = page(log, value="gold")
    assert f"gold {number(shown[0].scored[0].rewards['gold'])}" in reader.text
    commit(log, sampled(60, first=60))
    later = [one for one in sample_requests(LogSource((log,)), scores=("gold",)) if int(one.request_id[1:]) >= 60]
    assert later and not any("gold" in one.rewards for request in later for one in request.candidates)


def test_names_from_a_log_are_not_markup_in_pictures(tmp_path: Path) -> None:
    lines = [one | {"scores": {"<b>$x$": one["scores"]["gold"]}} for one in made_lines(12)]
    reader, source = page(imported(tmp_path, lines), value="<b>$x$")
    assert reader.tags.count("b") == source.count('class="card"')  # the cards' own
    assert "<b>$x$ of the best of k" in reader.text


def test_a_name_in_any_script_is_drawn_without_a_warning(tmp_path: Path) -> None:
    lines = [one | {"scores": {"正解": one["scores"]["gold"]}} for one in made_lines(3)]
    _, source = page(imported(tmp_path, lines), value="正解")
    assert "正解 of the best of k</text>" in source


def test_texts_can_be_left_out(tmp_path: Path) -> None:
    log = imported(tmp_path, made_lines(10))
    report(CurveOptions(LogSource((log,))), tmp_path / "out.html", with_texts=False)
    assert "prompt 3" not in (tmp_path / "out.html").read_text()


def test_small_and_odd_logs_have_a_page_too(tmp_path: Path) -> None:
    page(written(tmp_path, [record("one", [0.5])], "single"))
    page(written(tmp_path, [record("a", [1.0, 1.0]), record("b", [1.0, 1.0])], "equal"))
    page(written(tmp_path, [record("a", [0.3, 0.1 + 0.2]), record("b", [0.3, 0.3])], "equal but for rounding"))
    empty = [record("c", [0.1, 0.2], content_logged=False, prompt_messages=None)]
    page(written(tmp_path, empty, "without content"))


def test_requests_without_content_are_no_examples(tmp_path: Path) -> None:
    bare = [record(f"bare{i}", [0.1, 0.2], content_logged=False, prompt_messages=None) for i in range(9)]
    reader, source = page(written(tmp_path, [*bare, record("one", [0.5, 0.25])]))
    assert source.count('class="example"') == 1
    assert "token ids" not in reader.text and "What is 3 + 4?" in reader.text


def test_the_same_requests_are_sampled_every_time(tmp_path: Path) -> None:
    log = imported(tmp_path, made_lines(50))
    first, second = (sample_requests(LogSource((log,)), 10) for _ in range(2))
    assert [one.request_id for one in first] == [one.request_id for one in second]
    assert len(first) == 10
    assert len(sample_requests(LogSource((log,)), 1_000)) == 50


def test_the_sample_is_of_what_the_curve_is_of(tmp_path: Path) -> None:
    """Not of stopped requests, of attempts that failed before, or of other reward models."""
    failed = record("again", [], outcome=Outcome.FAILED)
    stopped = record("stopped", [1.0, 9.0], budget=Budget(stop_at_reward=0.5))
    other = record("other", [1.0, 2.0], reward_models=(ModelRef("reward", "another", "77"),))
    records = [failed, record("again", [1.0, 2.0], attempt=2), stopped, record("one", [1.0]), other]
    source = LogSource((written(tmp_path, records),), reward_model="a-reward-model")
    assert [one.request_id for one in sample_requests(source, 1)] == ["again"]
    assert [one.request_id for one in sample_requests(source, 9, stopped=True)] == ["stopped"]


def request(number: int, winner: str, *others: str) -> SampledRequest:
    texts = [winner, *others]
    candidates = [SampledCandidate(i, text, float(len(texts) - i)) for i, text in enumerate(texts)]
    return SampledRequest(str(number), Kind.IMPORT, None, candidates)  # type: ignore[arg-type]


def test_likings_are_what_winners_have_and_others_have_not() -> None:
    requests = [request(i, f"Sorry, word{'abc'[i % 3]} certainly.", "It is 7", "It is 8.") for i in range(30)]
    liked = {one.what: one.difference for one in features(requests)}
    assert liked["declines or apologises"] == 1.0 and liked["has a digit"] == -1.0
    assert liked["ends in a full stop"] == 0.5
    found = words(requests)
    assert found[0].difference == 1.0 and found[-1].difference == -1.0
    assert {"certainly", "sorry"} <= {one.what for one in found if one.difference > 0}


def test_a_real_browser_lays_it_out(tmp_path: Path) -> None:
    """At a phone's width nothing but tables is wider than the screen, and no request is made."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    log = imported(tmp_path, made_lines(40))
    report(CurveOptions(LogSource((log,)), value="gold"), tmp_path / "report.html")
    probe = "<script>document.title = 'width ' + document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    source = (tmp_path / "report.html").read_text().replace("default-src 'none'", "script-src 'unsafe-inline'")
    (tmp_path / "probe.html").write_text(source.replace("</body>", probe + "</body>"))
    frame = '<iframe src="probe.html" width="360" height="800" id="phone"></iframe>'
    show = "<script>onload = () => document.title = document.getElementById('phone').contentDocument.title</script>"
    (tmp_path / "frame.html").write_text(f"<!doctype html>{frame}{show}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *flags, profile, (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    widths = re.search(r"<title>width (\d+) of (\d+)</title>", done.stdout)
    assert widths is not None, done.stdout[:500]
    assert int(widths[1]) <= int(widths[2]) == 360
