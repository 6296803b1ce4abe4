"""What a benchmark has measured, its medians and its ratios, as plain values. Pure; safe in any thread.

Measurements are only ever added; a table, a page or a document is made of them afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FORMAT = 1
"""Raised with every change of the JSON document that a reader of older ones would misread."""


@dataclass(frozen=True)
class Row:
    """A kind of work: its name for programs, and its words for people."""

    name: str
    words: str
    cold: bool


@dataclass(frozen=True)
class Directory:
    """Where work was done: its name in the tables, its path and its file system."""

    name: str
    path: str
    type: str


@dataclass(frozen=True)
class Measurement:
    """One piece of work, done once in one directory: its seconds, or why it failed."""

    round: int
    row: str
    directory: str
    seconds: float | None
    failure: str = ""


@dataclass(frozen=True)
class Run:
    """A whole benchmark: enough to draw every table, and to know what the figures are of."""

    when: str
    version: str
    machine: Mapping[str, str]
    settings: Mapping[str, str]
    notes: tuple[str, ...]
    directories: tuple[Directory, ...]
    rows: tuple[Row, ...]
    measurements: tuple[Measurement, ...]

    @property
    def failures(self) -> list[str]:
        """One line for each piece of work that failed."""
        return [
            f"{measured.directory}, {measured.row}, round {measured.round}: {measured.failure}"
            for measured in self.measurements
            if measured.failure
        ]


@dataclass(frozen=True)
class Summary:
    """A row in one directory. None where nothing was measured, or where there is nothing to compare with.

    `to_first` and `to_best` say how many times as fast it is as in the first directory, and as in the best of
    the others without the first: 3 means a third of its time.
    """

    seconds: float | None
    least: float | None
    most: float | None
    to_first: float | None
    to_best: float | None
    failures: int


def median(values: Sequence[float]) -> float | None:
    """Return the median, or None of no values."""
    return statistics.median(values) if values else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that at least `percent` of the values do not exceed (the nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def times_as_fast(own_seconds: float | None, other_seconds: float | None) -> float | None:
    """Return how many times as fast it is as another: 3 means a third of the other's time."""
    if not own_seconds or other_seconds is None:
        return None
    return other_seconds / own_seconds


def summarize(run: Run) -> dict[str, dict[str, Summary]]:
    """Return what came of each row in each directory: {row: {directory: summary}}."""
    names = [directory.name for directory in run.directories]
    return {row.name: _summarize_row(run, row.name, names) for row in run.rows}


def _summarize_row(run: Run, row: str, names: Sequence[str]) -> dict[str, Summary]:
    mine = [measured for measured in run.measurements if measured.row == row]
    values = {
        name: [m.seconds for m in mine if m.directory == name and m.seconds is not None] for name in names
    }
    medians = {name: median(found) for name, found in values.items()}
    found = {}
    for name in names:
        is_first = name == names[0]
        others = [
            seconds
            for other, seconds in medians.items()
            if other not in (name, names[0]) and seconds is not None
        ]
        own = medians[name]
        found[name] = Summary(
            own,
            min(values[name], default=None),
            max(values[name], default=None),
            None if is_first else times_as_fast(own, medians[names[0]]),
            None if is_first or not others else times_as_fast(own, min(others)),
            sum(m.directory == name and bool(m.failure) for m in mine),
        )
    return found


def left_seconds(
    left: Sequence[tuple[str, str]],
    known: Mapping[tuple[str, str], Sequence[float]],
    guess: Mapping[str, float],
) -> float:
    """Return how long steps that are still to do will take.

    A step that was done before takes what it took; another one takes its row's guess, times how far the
    guesses of the rows that were done in its directory were off.

    Args:
        left: (row, directory) of each step to do.
        known: what each of these took, each time it was done.
        guess: what each row takes about.
    """
    return sum(_step_seconds(step, known, guess) for step in left)


def _step_seconds(
    step: tuple[str, str], known: Mapping[tuple[str, str], Sequence[float]], guess: Mapping[str, float]
) -> float:
    if taken := known.get(step):
        return statistics.median(taken)
    row, directory = step
    here = {done: taken for (done, place), taken in known.items() if place == directory and taken}
    guessed = sum(guess[done] for done in here)
    if not guessed:
        return guess[row]
    return guess[row] * sum(statistics.median(taken) for taken in here.values()) / guessed


def dumps(run: Run) -> str:
    """Return a run, with its medians and ratios, as one JSON document."""
    summaries = {
        row: {name: dataclasses.asdict(summary) for name, summary in found.items()}
        for row, found in summarize(run).items()
    }
    return json.dumps({"format": FORMAT, **dataclasses.asdict(run), "summaries": summaries}, indent=1) + "\n"
