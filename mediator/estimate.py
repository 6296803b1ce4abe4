"""How long what is left of a refill will take: between which bounds, and whether that makes an ETA.

Some of the cost of a block goes with its being one, and some with its bytes. How much, is seen only where
blocks of several sizes were moved: until then what is left of another size may take anything in between.
Pure: times come in from outside. Not thread-safe; one event loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

STEADY = 4 / 3
"""By such a factor work may become faster or slower, however steady it has been."""
UNSTEADY = 2.5
"""The same where it has not gone on for long enough to tell how steady it is."""
LEAST_PIECES = 5
"""That can be told from so many pieces of the work."""
RIGHT = 2.0
"""An ETA is told if it is wrong by such a factor at most, by all that is known."""
ABOUT_TO_END_SECONDS = 3.0
"""What lasts no longer, at most, is about to end: no figure of it would be right for long."""
GUESSES = 40
"""So many shares between 0 and 1 are held against what was seen."""
DOUBT = 10.0
"""A share is believed if it explains what was seen worse than the best one by so much of what that leaves."""
LEAST_MISFIT = 0.02**2
"""No share explains the time of a step better than to two hundredths."""
LEAST_STEPS = 3
"""Of fewer steps nothing is learnt."""
FORGET_SECONDS = 300.0
"""After so much work what was learnt counts for 1/e."""


class Point(NamedTuple):
    """What had been done after so much working time; or what was done in it."""

    seconds: float
    blocks: int
    bytes: int


class Rate(NamedTuple):
    """Blocks and bytes a second; zeros while nothing is known."""

    blocks: float
    bytes: float


class Span(NamedTuple):
    """How long something is expected to take, in seconds, at least and at most."""

    expected: float
    least: float
    most: float


class Eta(NamedTuple):
    """What is told: `seconds` if they are right within a factor of two, and bounds if any are known."""

    seconds: float | None = None
    least: float | None = None
    most: float | None = None


def tell(span: Span) -> Eta:
    """Return what to tell of time left that is known to lie in a span."""
    if span.most <= ABOUT_TO_END_SECONDS:
        return Eta(None, 0.0, ABOUT_TO_END_SECONDS)
    is_right = span.most <= RIGHT * span.expected and span.expected <= RIGHT * span.least
    return Eta(span.expected if is_right else None, span.least, span.most)


def add(one: Span, other: Span) -> Span:
    """Return how long two things take, one after the other."""
    return Span(*(a + b for a, b in zip(one, other, strict=True)))


def steadiness(speeds: Sequence[float]) -> tuple[float, float]:
    """Return by which factors work may become slower and faster: as it was in the last pieces of it.

    Args:
        speeds: of each piece; 1 is the rate that is reckoned with.
    """
    if len(speeds) < LEAST_PIECES:
        return UNSTEADY, UNSTEADY
    slowest, fastest = min(speeds), max(speeds)
    return max(STEADY, 1 / slowest if slowest else math.inf), max(STEADY, fastest)


class Costs:
    """What blocks cost beside bytes, as far as steps of work of several sizes have told. Old steps fade."""

    def __init__(self) -> None:
        self._steps = 0.0
        self._sums: tuple[float, ...] = (0.0,) * 6

    def learn(self, step: Point) -> None:
        """Take in what was done in some time."""
        seconds, blocks, size = step
        kept = math.exp(-seconds / FORGET_SECONDS)
        products = (
            *(blocks * blocks, blocks * size, size * size),
            *(blocks * seconds, size * seconds, seconds * seconds),
        )
        self._steps = self._steps * kept + 1
        self._sums = tuple(old * kept + new for old, new in zip(self._sums, products, strict=True))

    def span(self, rate: Rate, pieces: Sequence[Point], blocks: int, size: int) -> Span | None:
        """Return how long so many blocks of `size` bytes take; None if nothing is known.

        Args:
            rate: that at which others were done.
            pieces: what was done in several times before, each some blocks.
            blocks: how many are left.
            size: their bytes.
        """
        if not blocks:
            return Span(0.0, 0.0, 0.0)
        if not rate.blocks:
            return None
        by_blocks = blocks / rate.blocks
        if not size:
            return Span(by_blocks, 0.0, by_blocks)
        if not rate.bytes:
            return Span(by_blocks, by_blocks, math.inf)
        by_bytes = size / rate.bytes
        shares = self._believed(rate)
        times = [share * by_blocks + (1 - share) * by_bytes for share in shares]
        share = (shares[0] + shares[-1]) / 2
        slower, faster = steadiness(
            [
                (share * piece.blocks / rate.blocks + (1 - share) * piece.bytes / rate.bytes) / piece.seconds
                for piece in pieces
            ]
        )
        least, most = min(times), max(times)
        return Span(math.sqrt(least * most), least / faster, most * slower)

    def _believed(self, rate: Rate) -> list[float]:
        """Return which shares of the time may have gone with blocks, the rest with bytes, at a rate."""
        shares = [guess / GUESSES for guess in range(GUESSES + 1)]
        if self._steps < LEAST_STEPS:
            return shares
        misfits = [self._misfit(share / rate.blocks, (1 - share) / rate.bytes) for share in shares]
        best = min(misfits)
        most = best + DOUBT * max(best, LEAST_MISFIT) / (self._steps - LEAST_STEPS + 1)
        return [share for share, misfit in zip(shares, misfits, strict=True) if misfit <= most]

    def _misfit(self, a_block: float, a_byte: float) -> float:
        """Return how badly the times of the steps follow from such costs, however fast all went: 0 to 1."""
        blocks2, both, bytes2, blocks_time, bytes_time, time2 = self._sums
        told2 = a_block**2 * blocks2 + 2 * a_block * a_byte * both + a_byte**2 * bytes2
        told_time = a_block * blocks_time + a_byte * bytes_time
        return max(0.0, 1 - told_time**2 / (told2 * time2)) if told2 and time2 else 1.0
