"""What is sent to the ledger of repairs: all of it, once, whatever comes meanwhile; over fake servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mediator.ledger import Ledger
from metaserver.ledger import Ledger as LedgerFiles
from tests.unit.mediator_fakes import run, world


def note(ledger: Ledger, block: int) -> None:
    ledger.note(block.to_bytes(16, "big"), 1, "corrupt", "", "", "why")


def test_who_asks_for_the_ledger_while_it_is_sent_sends_nothing_twice() -> None:
    async def scenario() -> None:
        async with world() as w:
            ledger = w.mediator.ledger
            for block in range(3):
                note(ledger, block)
            await asyncio.gather(ledger.flush(), ledger.flush())
            assert [int(entry["block"], 16) for entry in w.meta.repairs] == [0, 1, 2]
            assert ledger.written == 3

    run(scenario())


def test_what_is_noted_while_more_than_can_wait_is_sent_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.ledger.MOST_WAITING", 4)

    async def scenario() -> None:
        async with world() as w:
            ledger, w.meta.delay_seconds = w.mediator.ledger, 0.01
            for block in range(4):
                note(ledger, block)
            flush = asyncio.create_task(ledger.flush())
            await asyncio.sleep(0.005)
            for block in range(4, 8):
                note(ledger, block)
            await flush
            await ledger.flush()
            assert [int(entry["block"], 16) for entry in w.meta.repairs] == list(range(8))

    run(scenario())


def test_who_asks_for_the_ledger_does_not_wait_for_what_is_noted_since() -> None:
    """As during a refill, which notes each block that it fills."""

    async def scenario() -> None:
        async with world() as w:
            ledger, note_repairs = w.mediator.ledger, w.meta.note_repairs

            def note_another(entries: list[dict[str, Any]]) -> None:
                note(ledger, 7)
                note_repairs(entries)

            w.meta.note_repairs = note_another  # type: ignore[method-assign]
            note(ledger, 1)
            async with asyncio.timeout(10):
                await ledger.flush()
            assert len(w.meta.repairs) == 1

    run(scenario())


def test_a_long_path_does_not_stop_the_ledger(tmp_path: Path) -> None:
    """What is short in characters may be longer than a line of the ledger once it is written as ASCII."""

    async def scenario() -> None:
        async with world() as w:
            files = LedgerFiles(tmp_path)
            w.meta.note_repairs = files.append  # type: ignore[method-assign]
            w.meta.paths_of = lambda ino, limit: [b"/" + "\N{GRINNING FACE}".encode() * 600]  # type: ignore[method-assign]
            w.meta.files_of_block = lambda block: [7, 8, 9, 10]  # type: ignore[method-assign]
            w.mediator.ledger.note(w.commit().block, 1, "corrupt", "0" * 64, "1" * 64, "y" * 500)
            await w.mediator.ledger.flush()
            (entry,) = files.newest(2)
            assert len(entry["files"]) == 4
            assert entry["files"][0].startswith("/\N{GRINNING FACE}")

    run(scenario())


def test_what_a_server_says_for_a_digest_is_cut_to_the_length_of_one(tmp_path: Path) -> None:
    """A line that is too long would be refused, and keep all later ones waiting."""
    files = LedgerFiles(tmp_path)

    async def scenario() -> None:
        async with world() as w:
            w.meta.note_repairs = files.append  # type: ignore[method-assign]
            record = w.commit()
            w.data[1].damage(record.block)
            w.data[1].digest = lambda *_: bytes(5000)  # type: ignore[method-assign]
            await w.mediator.repairs.repair(record.block)
            await w.mediator.ledger.flush()
            [entry] = files.newest(9)
            assert entry["digest_before"] == bytes(32).hex()

    run(scenario())
