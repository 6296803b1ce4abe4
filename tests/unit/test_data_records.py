"""Records and pieces: encoding, decoding, and the arithmetic of votes. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataserver.pieces import refreshed_digests, span_of, vote
from dataserver.record import (
    FREED,
    HEAD_BYTES,
    HEADER_BYTES,
    LIVE,
    PAGE_BYTES,
    Header,
    SegmentHead,
    decode_head,
    decode_header,
    encode_head,
    encode_header,
    record_bytes,
)
from wire.digest import BLOCK_BYTES, DIGEST_BYTES, PIECE_BYTES, block_digest, piece_digests


def header_for(data: bytes, segment: int = 7, offset: int = 8192) -> Header:
    return Header(LIVE, bytes(range(16)), len(data), block_digest(data), piece_digests(data), segment, offset)


@pytest.mark.parametrize("length", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, BLOCK_BYTES])
@pytest.mark.parametrize("kind", [LIVE, FREED])
def test_a_header_comes_back(length: int, kind: int) -> None:
    header = header_for(bytes(length))._replace(kind=kind)
    page = encode_header(header)
    assert len(page) == PAGE_BYTES
    assert decode_header(page, 7, 8192) == header


def test_a_header_counts_at_its_own_place_only() -> None:
    page = encode_header(header_for(b"x"))
    assert decode_header(page, 7, 4096) is None
    assert decode_header(page, 8, 8192) is None


def test_any_flipped_byte_of_a_header_is_noticed() -> None:
    page = encode_header(header_for(bytes(100_000)))
    for at in range(HEADER_BYTES):
        wrong = bytearray(page)
        wrong[at] ^= 0x10
        assert decode_header(bytes(wrong), 7, 8192) is None, at
    assert decode_header(page[: HEADER_BYTES - 1], 7, 8192) is None
    assert decode_header(b"", 7, 8192) is None


def test_any_flipped_byte_of_a_segments_head_is_noticed() -> None:
    page = encode_head(SegmentHead(3, b"i" * 16))
    assert decode_head(page) == SegmentHead(3, b"i" * 16)
    for at in range(HEAD_BYTES):
        wrong = bytearray(page)
        wrong[at] ^= 1
        assert decode_head(bytes(wrong)) is None, at


@pytest.mark.parametrize(("length", "size"), [(0, 4096), (1, 8192), (4096, 8192), (4097, 12288)])
def test_how_much_a_record_takes(length: int, size: int) -> None:
    assert record_bytes(length) == size


@given(st.integers(0, 5 * PIECE_BYTES), st.integers(0, 6), st.integers(0, 6), st.integers(0, 5 * PIECE_BYTES))
def test_a_vote_notices_a_wrong_byte_in_the_asked_pieces_only(
    length: int, first: int, count: int, at: int
) -> None:
    data = bytes(length)
    digest, recorded = block_digest(data), piece_digests(data)
    span = span_of(length, first, count)
    assert vote(length, digest, recorded, span, data[span.start : span.end]) == digest
    if at < length:
        wrong = bytearray(data)
        wrong[at] = 1
        told = vote(length, digest, recorded, span, bytes(wrong[span.start : span.end]))
        assert (told != digest) == (span.start <= at < span.end)


@given(st.integers(1, 5 * PIECE_BYTES), st.integers(0, 5), st.integers(0, 5), st.data())
def test_bytes_that_the_files_end_cuts_off_lose_the_vote(
    length: int, first: int, count: int, draw: st.DataObject
) -> None:
    data = bytes(length)
    span = span_of(length, first, count)
    if span.start == span.end:
        return
    kept = draw.draw(st.integers(0, span.end - span.start - 1))
    cut = data[span.start : span.start + kept]
    assert vote(length, block_digest(data), piece_digests(data), span, cut) != block_digest(data)
    digests = refreshed_digests(length, piece_digests(data), span, cut)
    assert len(digests) == len(piece_digests(data))
    assert len(digests) % DIGEST_BYTES == 0
