"""Time at risk: for how long how many committed blocks had fewer than Qw good copies, as far as is known.

Known is the lag that the metadata server remembers (docs/decisions/0009-who-lacks-which-block.md), not damage
that nobody has read yet. It mends nothing. `TimeAtRisk` is pure; `RiskWatch` asks on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mediator.servers import Metadata
from wire.errors import QuorumfsError
from wire.methods import BookkeepingMethods
from wire.quorum import Quorum

LOOK_SECONDS = 1.0
ASKING_SHARE = 0.05
"""At most this share of the time is spent on asking: with a long lag, the count takes a while."""


class TimeAtRisk:
    """The blocks at risk, integrated over time: between two looks the number is taken to change evenly."""

    def __init__(self) -> None:
        self.blocks = 0
        self.block_seconds = 0.0
        self.watched_seconds = 0.0
        self._seen_at: float | None = None

    def saw(self, now: float, blocks: int) -> None:
        """So many blocks are at risk.

        Args:
            now: in seconds, never less than before. A long time since the look before counts like any
                other: nothing is committed, and nothing filled is told, while nobody answers.
            blocks: how many have fewer than Qw good copies.
        """
        if self._seen_at is not None:
            seconds = now - self._seen_at
            self.block_seconds += seconds * (self.blocks + blocks) / 2
            self.watched_seconds += seconds
        self.blocks, self._seen_at = blocks, now

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "blocks": self.blocks,
            "block_seconds": self.block_seconds,
            "watched_seconds": self.watched_seconds,
        }


class RiskWatch:
    """Asks the metadata server again and again how many blocks are at risk."""

    def __init__(
        self, quorum: Quorum, metadata: Metadata, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spared = quorum.servers - quorum.write
        self._metadata = metadata
        self._clock = clock
        self._time = TimeAtRisk()

    def status(self) -> dict[str, Any]:
        """Return the time at risk since this mediator started, as plain data."""
        return self._time.as_data()

    async def look(self) -> None:
        """Look once. Raises QuorumfsError: the next look counts for both."""
        blocks = await self._metadata.ask(BookkeepingMethods.blocks_at_risk, self._spared)
        self._time.saw(self._clock(), blocks)

    async def run_forever(self) -> None:
        """Look from time to time."""
        while True:
            begun, pause = self._clock(), LOOK_SECONDS
            with suppress(QuorumfsError):
                await self.look()
                pause = max(pause, (self._clock() - begun) / ASKING_SHARE)
            await asyncio.sleep(pause)
