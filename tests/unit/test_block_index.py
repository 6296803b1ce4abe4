"""The index of blocks beside a dictionary: what is there, what is not, in memory, saved and reopened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dataserver import index as index_module
from dataserver.index import Entry, Index, SegmentRow

SEGMENTS = [SegmentRow(1, bytes(16), 0, 0, 0)]


def entry_of(block: bytes, offset: int) -> Entry:
    return Entry(block, 1, offset * 8192, 4096, block * 2)


@pytest.mark.parametrize("seed", range(6))
def test_an_index_knows_what_was_put_and_nothing_else(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_WRITERS_LIMIT", 2)  # fewer than there are
    dice = random.Random(seed)
    blocks = [w.to_bytes(8, "big") + n.to_bytes(8, "big") for w in (0, 1, 2, 2**64 - 1) for n in range(12)]
    index, expected, offset = Index(tmp_path / "index"), dict[bytes, Entry](), 0
    for _ in range(400):
        block, action = dice.choice(blocks), dice.random()
        if action < 0.4 and block not in expected:
            offset += 1
            expected[block] = entry_of(block, offset)
            index.put(expected[block], None)
        elif action < 0.55:
            assert index.remove(block) == expected.pop(block, None)
        elif action < 0.65:
            index.save(SEGMENTS)
        elif action < 0.7:
            index.save(SEGMENTS)
            index.close()
            index = Index(tmp_path / "index")  # which compares the sum of the rows
        asked = dice.choice(blocks)
        assert index.get(asked) == expected.get(asked), f"seed {seed}"
    assert index.totals[:2] == (len(expected), 4096 * len(expected))
    index.close()


def test_a_new_block_needs_no_look_into_the_file(tmp_path: Path) -> None:
    index = Index(tmp_path / "index")
    for number in range(100):
        block = (5).to_bytes(8, "big") + number.to_bytes(8, "big")
        index.put(entry_of(block, number), None)
        if number % 10 == 0:
            index.save(SEGMENTS)
    asked: list[str] = []
    index._reader.set_trace_callback(asked.append)
    assert index.get((5).to_bytes(8, "big") + (100).to_bytes(8, "big")) is None
    assert index.get((5).to_bytes(8, "big") + (101).to_bytes(8, "big")) is None
    assert len(asked) <= 1
    assert index.get((5).to_bytes(8, "big") + (3).to_bytes(8, "big")) is not None
    index.close()
