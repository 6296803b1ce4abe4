"""Many decoders of one thread with one room and one unpacker: none gets what is another's."""

from __future__ import annotations

import os
import random
import tracemalloc
from typing import Any

import msgpack
import pytest

from wire.msgpack_codec import ROOM_BYTES, Decoder, Encoder, Malformed, Workbench

LENGTHS = (0, 1, 10, 1000, 16 * 1024, 40_000, ROOM_BYTES, 100_000)


def message(number: int, source: random.Random) -> list[Any]:
    """Return a request: short, long, or of so many items that it is unpacked bit by bit."""
    kind = source.randrange(4)
    if kind == 0:
        params: list[Any] = [number]
    elif kind == 1:
        params = [source.randbytes(source.choice(LENGTHS)) for _ in range(source.randrange(1, 4))]
    elif kind == 2:
        params = [list(range(source.choice((10, 1000, 20_000)))), source.randbytes(source.choice(LENGTHS))]
    else:
        params = [[{"name": "x", "data": source.randbytes(source.choice(LENGTHS))}] * source.randrange(1, 30)]
    return [0, number, "put", params]


class Stream:
    """What one peer sends, and what is made of it."""

    def __init__(self, bench: Workbench, number: int, source: random.Random) -> None:
        self.sent = [message(number * 1000 + n, source) for n in range(source.randrange(1, 8))]
        self.left = b"".join(msgpack.packb(each) for each in self.sent)
        self.got: list[Any] = []
        self.sizes: list[int] = []
        self._source = source
        self.decoder = Decoder(bench, may_hold=lambda size: source.random() < 0.8)

    def turn(self) -> None:
        """Receive some more, or only look again at what is here; take one message, or all."""
        if self.left and self._source.random() < 0.8:
            most = self._source.choice((8 * 1024, ROOM_BYTES))
            room = self.decoder.room(most)
            count = min(len(room), len(self.left), self._source.choice((1, 7, 1000, 20_000, ROOM_BYTES)))
            if not count:
                self._take(1000)
                return
            room[:count] = self.left[:count]
            self.left = self.left[count:]
            self.decoder.received(count)
        self._take(self._source.choice((0, 1, 1000)))

    def _take(self, most: int) -> None:
        for _ in range(most):
            if (found := self.decoder.next()) is None:
                break
            self.got.append(found)
            self.sizes.append(self.decoder.message_bytes)
        self.decoder.leave()


@pytest.mark.parametrize("seed", range(40))
def test_each_gets_its_own_messages_whatever_comes_in_between(seed: int) -> None:
    source = random.Random(seed)
    bench = Workbench(2**24, strict=True)
    streams = [Stream(bench, number, source) for number in range(4)]
    for _ in range(20_000):
        open_streams = [stream for stream in streams if len(stream.got) < len(stream.sent)]
        if not open_streams:
            break
        source.choice(open_streams).turn()
    for stream in streams:
        assert stream.got == stream.sent
        assert stream.sizes == [len(msgpack.packb(each)) for each in stream.sent]


def test_garbage_of_one_peer_is_nothing_to_the_others() -> None:
    bench = Workbench(2**20, strict=True)
    good, bad = Decoder(bench), Decoder(bench)
    half = msgpack.packb([0, 1, "put", [b"x" * 1000]])
    good.room()[:500] = half[:500]
    good.received(500)
    assert good.next() is None
    good.leave()
    bad.room()[:3] = b"\x94\xc1\xc1"
    bad.received(3)
    with pytest.raises(Malformed):
        bad.next()
    bad.leave()
    short = msgpack.packb([0, 2, "count", []])
    another = Decoder(bench)
    another.room()[: len(short)] = short
    another.received(len(short))
    assert another.next() == [0, 2, "count", []]
    another.leave()
    bad.end()
    rest = half[500:]
    good.room()[: len(rest)] = rest
    good.received(len(rest))
    assert good.next() == [0, 1, "put", [b"x" * 1000]]


def test_values_count_before_their_message_is_whole() -> None:
    """A byte can be a value of 64: a megabyte of them was taken for a megabyte."""
    decoder = Decoder(Workbench(2**24, strict=True))
    data = msgpack.packb([0, 1, "put", [[[]] * 60_000] * 3])[:-1]
    while data:
        room = decoder.room()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        decoder.received(count)
        assert decoder.next() is None
        decoder.leave()
    assert decoder.announced_bytes > 2 * 60_000 * 64


def test_one_that_waits_for_room_keeps_little_but_what_came() -> None:
    """Each kept an unpacker and had a packer: 125 KiB of each of 900 peers that put."""
    bench, peers, came = Workbench(2**24, strict=True), 100, 8_000
    begun = msgpack.packb([0, 1, "put", [os.urandom(2**20)]])[:came]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = []
        for _ in range(peers):
            decoder = Decoder(bench, may_hold=lambda _: False)
            decoder.room()[:came] = begun
            decoder.received(came)
            assert decoder.next() is None
            decoder.leave()
            kept.append((decoder, Encoder(bench.packing)))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / peers < came + 6_000
