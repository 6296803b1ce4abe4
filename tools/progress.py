"""A progress bar with an honest time left, for work that is made of steps.

The time left follows from how long the estimated work that is done has really taken. The bar is drawn on
standard error, and on a terminal only. A Bar belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.text import Text


def seconds_left(elapsed_seconds: float, done_seconds: float, total_seconds: float) -> float | None:
    """Return how long the rest takes if it goes as what is done went, or None before anything is done.

    Args:
        elapsed_seconds: how long it has really taken so far.
        done_seconds: what the steps that are done were estimated to take.
        total_seconds: what all steps are estimated to take.
    """
    if done_seconds <= 0:
        return None
    return elapsed_seconds * max(0.0, total_seconds - done_seconds) / done_seconds


class Remaining(TextColumn):
    """The time left as minutes and seconds."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: ProgressTask) -> Text:
        """Return the time left, or dashes while nothing is known of it."""
        fields = task.fields
        left = seconds_left(task.elapsed or 0.0, fields["done_seconds"], fields["total_seconds"])
        words = "-:--" if left is None else f"{int(left) // 60}:{int(left) % 60:02d}"
        return Text(f"{words} left", style="cyan")


class Bar:
    """The progress of some work: steps for people, estimated seconds for the time left."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._done_seconds = 0.0

    def describe(self, text: str) -> None:
        """Say what is done now."""
        self._progress.update(self._task, description=text)

    def advance(self, estimated_seconds: float, steps: int, left_seconds: float | None = None) -> None:
        """Say that steps estimated to take so long are done.

        Args:
            estimated_seconds: of these steps.
            steps: how many they are.
            left_seconds: a new estimate of all that is still to do, if there is a better one by now.
        """
        self._done_seconds += estimated_seconds
        self._progress.update(self._task, advance=steps, done_seconds=self._done_seconds)
        if left_seconds is not None:
            self._progress.update(self._task, total_seconds=self._done_seconds + left_seconds)


@contextmanager
def progress_bar(steps: int, unit: str, total_seconds: float) -> Iterator[Bar]:
    """Show a bar on standard error while the block runs; nothing but a terminal gets one.

    Args:
        steps: how many there are; `unit` is what people call them.
        unit: as "cells".
        total_seconds: what all of them are estimated to take.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), Remaining(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=steps, total_seconds=total_seconds, done_seconds=0.0)
        yield Bar(progress, task)


@contextmanager
def watching(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows on a terminal how far work is: told what is done, how much of it, and of how much.

    `verb` is what is being done, as "checking"; a total of 0 is not known.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        bar, shown = bars.add_task(verb), ""

        def watch(doing: str, done: int, total: int) -> None:
            nonlocal bar, shown
            if doing != shown:
                # Other work goes at another speed, and what was before says nothing of the time left.
                bars.remove_task(bar)
                bar, shown = bars.add_task(f"{verb} {doing}", total=None), doing
            bars.update(bar, completed=done, total=total or None)

        yield watch
