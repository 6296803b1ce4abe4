"""The evaluation's options and estimates, and the model that stands beside what is measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tools.evaluate import add_parser, cell_costs, make_plan
from tools.measure import predict
from tools.records import PUBLISHED_SETTINGS, Cell, Outcome, plan_cells
from tools.version import describe_version
from wire.config import ConfigError
from wire.quorum import Quorum


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *words])


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ((), PUBLISHED_SETTINGS),
        (("--servers", "3"), (Quorum(3, 2, 3),)),
        (("--servers", "1"), (Quorum(1, 1, 1),)),
        (("--read-quorum", "4"), (Quorum(5, 4, 5),)),
        (("--write-quorum", "3"), (Quorum(5, 3, 3),)),
        (("--servers", "7", "--read-quorum", "5", "--write-quorum", "4"), (Quorum(7, 5, 4),)),
    ],
)
def test_options_choose_the_settings(words: tuple[str, ...], settings: tuple[Quorum, ...]) -> None:
    assert make_plan(parse(*words)).settings == settings


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--servers", "0"), "at least one data server"),
        (("--servers", "3", "--read-quorum", "4"), "does not fit N=3"),
        (("--read-quorum", "2", "--write-quorum", "3"), "does not exceed N=5"),
        (("--keep", "/proc/nowhere"), "cannot be used"),
        (("--keep", "/proc"), "is not empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_plan(parse(*words))


def test_a_seed_is_kept_and_a_missing_one_is_chosen() -> None:
    assert make_plan(parse("--seed", "42")).seed == 42
    assert len({make_plan(parse()).seed for _ in range(20)}) > 1


def test_the_directory_to_keep_is_made(tmp_path: Path) -> None:
    assert make_plan(parse("--keep", str(tmp_path / "a" / "b"))).keep == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_the_model_predicts_the_published_tables() -> None:
    """DESIGN's tables, written down a second time."""
    for quorum in PUBLISHED_SETTINGS:
        for count in range(quorum.servers + 1):
            read = Outcome.RIGHT if quorum.servers - count >= quorum.read else Outcome.REFUSED
            assert predict(quorum, Cell("read", count, 0)) == read
            assert predict(quorum, Cell("read", 0, count)) == read
            assert count == 0 or predict(quorum, Cell("read", 0, count, "colluding")) == read
            assert predict(quorum, Cell("write", 0, count)) == Outcome.RIGHT
            write = Outcome.REFUSED if count else Outcome.RIGHT
            assert predict(quorum, Cell("write", count, 0)) == write


def test_each_round_of_crashes_is_paid_once() -> None:
    cells = plan_cells(3)
    costs = cell_costs(cells)
    assert len(costs) == len(cells)
    dear = [cell.crashed for cell, cost in zip(cells, costs, strict=True) if cost > 2 * min(costs)]
    assert dear == [1, 2, 3]


def test_the_version_is_told() -> None:
    assert describe_version()
