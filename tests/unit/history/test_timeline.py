"""The drawn history: well formed, complete in itself, and with names that are no markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.unit.history.test_registers import BAD, call
from tools.cli import main
from tools.history.check import check
from tools.history.record import Call, History, Mark
from tools.history.timeline import CALLS_MAX, render

VOID = {"meta", "br"}
NASTY = "</title><script>alert(1)</script>\"'&\x00\ud800"


class Tags(HTMLParser):
    """Fails where a tag is closed that is not open; collects names and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def inspect(page: str) -> list[ElementTree.Element]:
    """Check the page, and return its figures."""
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert not tags.open
    assert not tags.seen & {"script", "link", "img", "iframe", "object", "use", "image", "foreignobject"}
    assert not [name for name, _ in tags.attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", page)
    page.encode()
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def rects(figure: ElementTree.Element, kind: str) -> list[str]:
    return [
        rect.findtext("title") or "" for rect in figure.iter("rect") if kind in rect.get("class", "").split()
    ]


@pytest.mark.parametrize("name", BAD)
def test_what_broke_is_drawn(name: str) -> None:
    findings = check(BAD[name])
    (figure,) = inspect(render("file", History(BAD[name], []), findings))
    assert len(list(figure.iter("rect"))) == len(BAD[name])
    assert len(rects(figure, "broke")) == len(findings[0].calls)
    assert any(text.endswith("ms") for text in (node.text or "" for node in figure.iter("text")))


def test_messages_votes_and_faults_have_their_places() -> None:
    marks = [
        Mark(1, "message", 0, 5, "c1", "mediator", "write"),
        Mark(2, "vote", 3, 3, "data-1", "", "good block"),
        Mark(3, "vote", 4, 4, "data-2", "", "corrupt block"),
        Mark(4, "fault", 6, 6, "", "", "kill data-2"),
    ]
    (figure,) = inspect(render("file", History([call(1, "write", "a", 0, 9)], marks), []))
    classes = [node.get("class") for node in figure.iter("line")]
    assert classes.count("message") == classes.count("fault") == 1
    assert [node.get("class") for node in figure.iter("circle")] == [None, "bad"]
    lanes = {node.findtext("title") for node in figure.iter("text")}
    assert {"c1", "mediator", "data-1", "data-2"} <= lanes


def test_names_are_no_markup() -> None:
    calls = [
        Call(1, NASTY, "write", NASTY, NASTY, "ok", 0, 1, NASTY),
        Call(2, NASTY, "read", NASTY, None, "ok", 2, 3, NASTY),
    ]
    marks = [Mark(3, kind, 1, 2, NASTY, "x" + NASTY, NASTY) for kind in ("message", "vote", "fault")]
    (figure,) = inspect(render(NASTY, History(calls, marks), check(calls)))
    assert "<script>alert(1)</script>" in rects(figure, "broke")[0]


def test_a_long_history_is_cut_to_what_matters() -> None:
    calls = [call(n, "write", f"v{n}", n * 10**8, n * 10**8 + 5) for n in range(1, 3 * CALLS_MAX)]
    calls[600] = calls[600]._replace(operation="read", value="wrong")
    (figure,) = inspect(render("file", History(calls, []), check(calls)))
    assert 1 <= len(list(figure.iter("rect"))) <= CALLS_MAX
    assert "line 601" in rects(figure, "broke")[0]
    (figure,) = inspect(render("file", History(calls[:600] * 2, []), []))
    assert len(list(figure.iter("rect"))) == CALLS_MAX
    assert inspect(render("file", History([], []), [])) == []


def test_command_writes_the_page(tmp_path: Path) -> None:
    file, page = tmp_path / "history", tmp_path / "page.html"
    events = [
        {"event": "invoke", "client": "a", "time_ns": 1, "operation": "read", "key": "k"},
        {"event": "vote", "time_ns": 2, "source": "data-1", "text": "good"},
        {"event": "return", "client": "a", "time_ns": 4, "outcome": "ok", "value": "y"},
    ]
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file), "--html", str(page)]) == 1
    (figure,) = inspect(page.read_text())
    assert len(rects(figure, "broke")) == 1
    assert main(["check-history", str(file), "--html", str(tmp_path / "no" / "page")]) == 2
