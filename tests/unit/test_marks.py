"""What a data server keeps for its mediators, when two of them have it kept at the same time."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import dataserver.marks
from dataserver.block_rings import BlockRings
from dataserver.durable import write_file
from dataserver.marks import Milestones, ScrubMark
from dataserver.memory import MemoryStore
from dataserver.quarantine import Quarantine
from dataserver.service import DataService
from wire.messages import Identity, Milestone

TOGETHER_SECONDS = 0.2


@pytest.mark.parametrize("mark", ["scrub", "milestone"])
def test_two_mediators_do_not_write_one_file_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """Each would write the other's draft: one failed, and what was left could be half of each."""
    together = threading.Barrier(2)

    def write_together(path: Path, content: bytes) -> None:
        with suppress(threading.BrokenBarrierError):
            together.wait(TOGETHER_SECONDS)
            pytest.fail("both write")
        write_file(path, content)

    monkeypatch.setattr(dataserver.marks, "write_file", write_together)
    store = MemoryStore()
    service = DataService(
        store,
        Identity("dataserver", "test", 1, 1),
        ScrubMark(tmp_path),
        Milestones(tmp_path),
        Quarantine(tmp_path / "q", 1, 1.0),
        BlockRings(tmp_path, store),
    )

    async def keep(number: int) -> None:
        if mark == "scrub":
            await service.keep_scrub({"checked": number})
        else:
            await service.keep_milestone(Milestone("one", number))

    async def keep_two() -> None:
        await asyncio.gather(keep(1), keep(2))

    asyncio.run(keep_two())
    service.close()
