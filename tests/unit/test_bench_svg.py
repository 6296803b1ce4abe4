"""Curves: where the points come to lie, and that the picture can be read by itself."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tools.bench_curves import Extent, Point, count_text, pictures, size_text, time_text
from tools.bench_svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Picture,
    Series,
    decades,
    render_svg,
)


def picture(*series: Series) -> Picture:
    return Picture("Cost <of> it", "entries", "time", count_text, time_text, series)


def test_equal_factors_are_equal_distances() -> None:
    axis = Axis(1, 100, 0, 200)
    assert [axis(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert Axis(5, 5, 0, 200)(5) == 100


@pytest.mark.parametrize(
    ("least", "most", "found"),
    [(0.002, 0.3, [0.001, 0.01, 0.1, 1.0]), (1, 1, [1, 10]), (1, 10, [1, 10]), (0.5, 0.6, [0.1, 1])],
)
def test_decades_reach_around_the_values(least: float, most: float, found: list[float]) -> None:
    assert decades(least, most) == pytest.approx(found)


def test_points_lie_in_the_frame_and_in_order() -> None:
    drawn = render_svg(picture(Series("a", ((100, 0.01), (1, 0.001), (10, 1.0)))))
    points = re.search(r'points="([^"]+)"', drawn)
    assert points is not None
    places = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    middle = (LEFT + WIDTH - RIGHT) / 2
    assert [x for x, _ in places] == pytest.approx([LEFT, middle, WIDTH - RIGHT])
    assert [y for _, y in places][:2] == pytest.approx([HEIGHT - BOTTOM, TOP])


def test_the_picture_is_xml_that_loads_nothing() -> None:
    drawn = render_svg(picture(Series("a & b", ((1, 1),)), Series("<c>", ((1, 2), (2, 3)))))
    tree = ElementTree.fromstring(drawn)
    texts = ["".join(element.itertext()) for element in tree.iter() if element.tag.endswith("text")]
    assert {"Cost <of> it", "a & b", "<c>", "entries", "time"} <= set(texts)
    assert "href" not in drawn and "prefers-color-scheme: dark" in drawn


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        render_svg(picture(Series("a", ())))


def test_each_curve_has_its_picture() -> None:
    points = [
        Point("sizes", "write", 1024, 0.1),
        Point("sizes", "write", 4096, 0.2),
        Point("clients", "c", 1, 0.3),
    ]
    drawn = pictures(points)
    assert list(drawn) == ["sizes", "clients"]
    assert drawn["sizes"].series == (Series("write", ((1024, 0.1), (4096, 0.2))),)


def test_how_far_the_curves_go() -> None:
    assert Extent().sizes[0] == 1024 and Extent().sizes[-1] == 64 << 20 and len(Extent().sizes) == 9
    assert Extent().entries == [100, 1000, 10_000]
    assert Extent(most_entries=99).entries == [100]


@pytest.mark.parametrize(
    ("seconds", "text"), [(10.0, "10 s"), (0.1, "100 ms"), (1e-5, "10 us"), (1e-8, "10 ns")]
)
def test_times_on_the_axis(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_sizes_and_counts_on_the_axis() -> None:
    assert [size_text(1024), size_text(64 << 20)] == ["1 KiB", "64 MiB"]
    assert [count_text(7), count_text(10_000), count_text(1e6)] == ["7", "10,000", "1,000,000"]
