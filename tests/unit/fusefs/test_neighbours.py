"""Which files are fetched ahead: the pattern of opens, the window, and what is dropped again."""

from __future__ import annotations

import stat

from fusefs.neighbours import FIRST_WINDOW, MOST_DISORDER, MOST_SKIPPED, MOST_WINDOW, RUN_OPENS, Listing
from wire.messages import SMALL_BLOCK_BYTES, Attributes, Entry

MOST = 1 << 40


def entry(ino: int, size: int = 100, kind: int = stat.S_IFREG) -> Entry:
    return Entry(b"%06d" % ino, Attributes(ino, kind | 0o644, 1, 0, 0, 0, size, size, 0, 0, 0, 1))


class Program:
    """Opens files of a listing, a millisecond for each; what is asked for is there at once."""

    def __init__(self, *entries: Entry, seconds: float = 0.001, kept_seconds: float = 1.0) -> None:
        self.listing = Listing(entries, kept_seconds)
        self.here: set[int] = set()
        self.now, self.seconds = 0.0, seconds

    def open(self, ino: int, most_bytes: int = MOST) -> list[int]:
        self.now += self.seconds
        asked = self.listing.opened(ino, self.now, ino in self.here, most_bytes)
        assert not self.here & set(asked)
        self.here.update(asked)
        return asked


def files(count: int) -> list[Entry]:
    return [entry(ino) for ino in range(10, 10 + count)]


def test_a_run_is_noticed_and_its_window_grows_until_every_file_was_asked_for_once() -> None:
    program = Program(*files(500))
    asked = [program.open(ino) for ino in range(10, 510)]
    assert asked[: RUN_OPENS - 1] == [[]] * (RUN_OPENS - 1)
    assert len(asked[RUN_OPENS - 1]) == FIRST_WINDOW
    sizes = [len(each) for each in asked if each]
    assert sizes[:4] == [8, 16, 32, 64]
    assert max(sizes) == MOST_WINDOW
    assert len(sizes) < 15
    assert [ino for each in asked for ino in each] == list(range(10 + RUN_OPENS, 510))
    assert sum(index in program.here for index in range(10, 510)) == 500 - RUN_OPENS


def test_no_other_order_is_a_run() -> None:
    for order in ([30, 28, 26, 24], [10, 20, 30, 40, 50], [10, 11, 60, 61, 20, 21], [10] * 9, [12, 11, 10]):
        program = Program(*files(100))
        assert not any(program.open(ino) for ino in order), order


def test_a_jump_ends_a_run() -> None:
    program = Program(*files(500))
    for ino in range(10, 40):
        program.open(ino)
    assert program.open(400) == []
    assert program.open(401) == []
    assert program.open(402) == list(range(403, 403 + FIRST_WINDOW))


def test_files_may_be_left_out_and_come_in_disorder() -> None:
    program = Program(*files(300))
    step = MOST_SKIPPED + 1
    asked = [program.open(ino) for ino in range(10, 10 + 20 * step, step)]
    assert sum(map(bool, asked)) >= 3
    program = Program(*files(300))
    pairs = [[ino + 1, ino] for ino in range(10, 100, 2)]
    asked = [program.open(ino) for pair in pairs for ino in pair]
    assert any(asked)
    assert program.listing.opened(99 - MOST_DISORDER, program.now, True, MOST) == []
    assert len(program.here) > 64


def test_only_small_files_are_neighbours() -> None:
    others = [
        entry(3, kind=stat.S_IFDIR),
        entry(4, kind=stat.S_IFLNK),
        entry(5, size=0),
        entry(6, size=SMALL_BLOCK_BYTES + 1),
    ]
    program = Program(*others, *(entry(7, SMALL_BLOCK_BYTES), *files(5)))
    assert [ino for ino in range(20) if ino in program.listing] == [7, 10, 11, 12, 13, 14]
    assert [program.open(ino) for ino in (7, 10, 11)] == [[], [], [12, 13, 14]]


def test_the_bytes_asked_for_are_bounded() -> None:
    program = Program(*(entry(ino, size=1000) for ino in range(10, 100)))
    for ino in (10, 11):
        program.open(ino)
    assert program.open(12, 3999) == [13, 14, 15]
    assert program.open(13, 999) == []


def test_a_slow_program_is_asked_for_only_what_it_opens_in_time() -> None:
    program = Program(*files(100), seconds=0.1)
    asked = [program.open(ino) for ino in range(10, 30)]
    assert max(map(len, asked)) == 5  # in half a second
    program = Program(*files(100), seconds=0.4)
    assert not any(program.open(ino) for ino in range(10, 30))
    program = Program(*files(100), seconds=1.1)
    assert not any(program.open(ino) for ino in range(10, 30))


def test_a_run_begins_anew_where_what_was_asked_for_is_gone() -> None:
    program = Program(*files(100))
    for ino in range(10, 20):
        program.open(ino)
    program.here.clear()
    assert [len(program.open(ino)) for ino in range(20, 23)] == [0, 0, FIRST_WINDOW]
