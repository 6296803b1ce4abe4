"""A scan finds every whole record past any damage, and nothing that is none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dataserver.record import HEADER_BYTES, LIVE, PAGE_BYTES, Header, encode_header, record_bytes
from dataserver.scan import Cut, Damaged, Finding, Found, Unfinished, scan
from dataserver.segment import Segment, create_segment
from wire.digest import block_digest, piece_digests

LENGTHS = (10, 5000, 0, 100_000, 4096, 70_000, 1)


def add(segment: Segment, number: int, data: bytes) -> int:
    return segment.append(number.to_bytes(16, "big"), block_digest(data), piece_digests(data), data).offset


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    return create_segment(tmp_path, 3)


@pytest.fixture
def filled(segment: Segment) -> Segment:
    for number, length in enumerate(LENGTHS):
        add(segment, number, random.Random(number).randbytes(length))
    return segment


def look(segment: Segment, start: int = PAGE_BYTES) -> list[Finding]:
    return list(scan(segment.fileno(), segment.number, start))


def found(findings: list[Finding]) -> list[int]:
    return [int.from_bytes(f.header.block, "big") for f in findings if isinstance(f, Found)]


def overwrite(segment: Segment, offset: int, data: bytes) -> None:
    with segment.path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_all_records_are_found_in_order(filled: Segment) -> None:
    findings = look(filled)
    assert found(findings) == list(range(len(LENGTHS)))
    assert len(findings) == len(LENGTHS)


@pytest.mark.parametrize("victim", range(len(LENGTHS)))
@pytest.mark.parametrize("garbage", [b"\xff" * 600, b"QfsBlock" + b"\0" * 600, bytes(4096)])
def test_a_damaged_header_costs_its_own_record_only(filled: Segment, victim: int, garbage: bytes) -> None:
    headers = [finding.header for finding in look(filled) if isinstance(finding, Found)]
    overwrite(filled, headers[victim].offset, garbage)
    findings = look(filled)
    assert found(findings) == [number for number in range(len(LENGTHS)) if number != victim]
    for finding in findings:
        if isinstance(finding, Damaged):
            end = headers[victim].offset + record_bytes(headers[victim].length)
            assert headers[victim].offset <= finding.offset
            assert finding.offset + finding.length <= end


def test_garbage_anywhere_costs_only_what_it_hits(filled: Segment) -> None:
    headers = [finding.header for finding in look(filled) if isinstance(finding, Found)]
    whole = filled.path.read_bytes()
    for seed in range(100):
        dice = random.Random(seed)
        start = dice.randrange(PAGE_BYTES, len(whole))
        length = dice.randrange(1, 40_000)
        overwrite(filled, 0, whole)
        garbage = dice.randbytes(length)[: len(whole) - start]
        overwrite(filled, start, garbage)
        hit = {
            int.from_bytes(h.block, "big")
            for h in headers
            if h.offset < start + len(garbage) and start < h.offset + HEADER_BYTES
        }
        assert set(found(look(filled))) == set(range(len(LENGTHS))) - hit, f"seed {seed}"


def test_records_inside_of_a_payload_are_the_payload(segment: Segment, filled: Segment) -> None:
    """A copy of a segment kept as a block, even with its own header damaged, brings nothing back."""
    copy = filled.path.read_bytes()[PAGE_BYTES:]
    outer = add(filled, 99, copy)
    fake = encode_header(Header(LIVE, b"f" * 16, 1, bytes(32), b"", filled.number, filled.end))
    inner = add(filled, 100, fake)
    overwrite(filled, outer, b"\xff" * 4096)
    overwrite(filled, inner, b"\xff" * 4096)
    assert found(look(filled)) == list(range(len(LENGTHS)))


def test_holes_are_passed_over(filled: Segment) -> None:
    headers = [finding.header for finding in look(filled) if isinstance(finding, Found)]
    for victim in (1, 3, 4):
        filled.free(headers[victim].offset, record_bytes(headers[victim].length))
    findings = look(filled)
    assert found(findings) == [0, 2, 5, 6]
    assert len(findings) == 4


def test_where_holes_cannot_be_punched_records_are_marked(
    filled: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataserver.segment.punch_hole", lambda *place: False)
    headers = [finding.header for finding in look(filled) if isinstance(finding, Found)]
    end = headers[4].offset + record_bytes(headers[4].length)
    filled.free(headers[3].offset, end - headers[3].offset)
    findings = look(filled)
    assert found(findings) == [0, 1, 2, 5, 6]
    assert len(findings) == 5


def test_a_payload_without_its_header_at_the_end_is_unfinished(filled: Segment) -> None:
    end = filled.end
    overwrite(filled, end + PAGE_BYTES, b"payload")
    assert look(filled)[-1] == Unfinished(end, PAGE_BYTES + 7)


def test_a_record_that_the_file_cuts_short_is_told(filled: Segment) -> None:
    data = bytes(range(256)) * 100
    offset = add(filled, 50, data)
    for size in (offset + PAGE_BYTES, offset + PAGE_BYTES + len(data) - 1):
        with filled.path.open("r+b") as file:
            file.truncate(size)
        last = look(filled)[-1]
        assert isinstance(last, Cut)
        assert last.header.offset == offset
