"""Medians, ratios and the time left of a benchmark, and how they are drawn."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tools.bench_report import print_results, render_html, seconds_text, times_text
from tools.bench_results import (
    Directory,
    Measurement,
    Row,
    Run,
    dumps,
    left_seconds,
    median,
    percentile,
    summarize,
    times_as_fast,
)


def run_of(seconds: dict[str, list[float | None]], *, row: str = "write") -> Run:
    """A run of one row: the seconds of each round in each directory; None is a failure."""
    return Run(
        "2024-05-06T07:08:09+00:00",
        "1.0",
        {"processors": "2"},
        {"rounds": str(max(map(len, seconds.values())))},
        ("a note",),
        tuple(Directory(name, f"/{name}", "ext4") for name in seconds),
        (Row(row, "write <all> & fsync", False),),
        tuple(
            Measurement(number, row, name, value, "" if value is not None else "No space left")
            for name, values in seconds.items()
            for number, value in enumerate(values, 1)
        ),
    )


def printed(run: Run) -> str:
    out = io.StringIO()
    print_results(run, Console(file=out, width=200, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize(
    ("values", "expected"), [([], None), ([2.0], 2.0), ([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 2.0, 3.0], 2.5)]
)
def test_median(values: list[float], expected: float | None) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 50.0), (99, 99.0), (100, 100.0)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_percentile_of_few_values_is_the_greatest() -> None:
    assert percentile([1.0, 5.0], 99) == 5.0


@pytest.mark.parametrize(
    ("own", "other", "expected"), [(2.0, 6.0, 3.0), (6.0, 2.0, 1 / 3), (None, 2.0, None), (2.0, None, None)]
)
def test_three_times_as_fast_takes_a_third(
    own: float | None, other: float | None, expected: float | None
) -> None:
    assert times_as_fast(own, other) == (expected if expected is None else pytest.approx(expected))


def test_ratios_are_to_the_first_and_to_the_best_of_the_others_without_the_first() -> None:
    found = summarize(run_of({"local": [1.0, 1.0], "g": [8.0, 12.0], "m": [4.0, 4.0], "q": [2.0, 2.0]}))[
        "write"
    ]
    assert (found["local"].seconds, found["local"].to_first, found["local"].to_best) == (1.0, None, None)
    assert (found["q"].to_first, found["q"].to_best) == (0.5, 2.0)
    assert (found["m"].to_first, found["m"].to_best) == (0.25, 0.5)  # the best other is q, not local
    assert (found["g"].seconds, found["g"].least, found["g"].most) == (10.0, 8.0, 12.0)


def test_two_directories_have_one_ratio() -> None:
    found = summarize(run_of({"a": [1.0], "b": [2.0]}))["write"]
    assert (found["b"].to_first, found["b"].to_best) == (0.5, None)
    assert "best other" not in printed(run_of({"a": [1.0], "b": [2.0]}))


def test_a_failure_is_no_figure_and_is_told() -> None:
    run = run_of({"a": [1.0, 3.0], "b": [None, 2.0]})
    assert summarize(run)["write"]["b"].failures == 1
    assert run.failures == ["b, write, round 1: No space left"]
    for text in (printed(run), render_html(run)):
        assert "No space left" in text
    assert "FAILED" in printed(run).splitlines()[1]


def test_a_run_that_ended_early_can_be_drawn() -> None:
    run = run_of({"a": [], "b": []})
    assert printed(run) and render_html(run) and dumps(run)


def test_left_seconds_learn_how_far_the_guess_was_off() -> None:
    guess = {"write": 4.0, "read": 2.0}
    assert left_seconds([("write", "a"), ("read", "b")], {}, guess) == 6.0
    known = {("write", "a"): [1.0, 1.0]}
    # What was done counts as it was; the rest of that directory goes at its speed; others are guessed.
    assert left_seconds([("write", "a")], known, guess) == 1.0
    assert left_seconds([("read", "a")], known, guess) == 0.5
    assert left_seconds([("read", "b")], known, guess) == 2.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.00123, "0.0012"), (0.1234, "0.123"), (1.234, "1.23"), (123.4, "123")],
)
def test_seconds_for_people(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("times", "text"), [(None, "-"), (0.523, "0.52x"), (12.34, "12.3x"), (1234.0, "1234x")]
)
def test_times_for_people(times: float | None, text: str) -> None:
    assert times_text(times) == text


def test_the_table_has_medians_and_both_ratios() -> None:
    lines = printed(run_of({"local": [1.0], "g": [8.0], "q": [2.0]})).splitlines()
    assert lines[0].split("  ")[0] == "work"
    assert lines[1].split() == [
        "write",
        "<all>",
        "&",
        "fsync",
        *["1.00", "8.00", "0.12x", "0.25x", "2.00", "0.50x", "4.00x"],
    ]


class _Checker(HTMLParser):
    """Finds what is not closed, and whatever a self-contained page must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.loads += [name for name, _ in attributes if name in ("src", "href", "onload")]
        self.loads += [tag] if tag in ("script", "link", "img") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = render_html(run_of({"<a>": [1.0], "b&c": [4.0]}))
    checker = _Checker()
    checker.feed(page)
    assert not checker.open and not checker.loads and "http" not in page
    assert "<a>" not in page and "&lt;a&gt;" in page and "b&amp;c" in page


def test_the_bars_are_as_long_as_the_seconds() -> None:
    page = render_html(run_of({"a": [1.0], "b": [4.0], "c": [2.0]}))
    assert re.findall(r"width:([\d.]+)%", page) == ["25.00", "100.00", "50.00"]


def test_the_document_has_figures_and_what_they_are_of() -> None:
    document = json.loads(dumps(run_of({"a": [1.0, 2.0], "b": [None, 3.0]})))
    assert (
        document["format"] == 1 and document["version"] == "1.0" and document["machine"]["processors"] == "2"
    )
    assert document["summaries"]["write"]["a"]["seconds"] == 1.5
    assert document["measurements"][2]["failure"] == "No space left"
