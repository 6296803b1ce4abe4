"""The pieces of work of a benchmark on a plain directory, and on one that lies."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from tools.bench import add_parser, choose_rows, make_plan, name_directories, turn
from tools.bench_caches import Caches
from tools.bench_content import FILE, LOG, PAGE_BYTES, PAGES_PER_CHUNK, SMALL, Content
from tools.bench_parallel import create_in_parallel
from tools.bench_work import ROWS, Clock, Place, Sizes, WrongBytes, need_file, need_small, write_file
from wire.config import ConfigError

SIZES = Sizes(pages=300, random_calls=20, appends=3, files=9, processes=2)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, SIZES, 7)


def work(name: str):
    return next(row for row in ROWS if row.name == name)


def do(place: Place, name: str) -> float:
    clock = Clock()
    row = work(name)
    row.prepare(place)
    row.run(place, clock)
    return clock.seconds


def test_all_rows_in_turn(place: Place) -> None:
    assert all(do(place, row.name) > 0 for row in ROWS)
    assert place.file.stat().st_size == 300 * PAGE_BYTES
    assert not place.small.exists() and len(list(place.parallel.iterdir())) == 9


@pytest.mark.parametrize("row", [row.name for row in ROWS])
def test_each_row_alone(place: Place, row: str) -> None:
    assert do(place, row) > 0


def test_a_row_that_is_repeated_in_another_order(place: Place) -> None:
    for name in (
        "random-read",
        "random-write",
        "read-cold",
        "delete",
        "list",
        "random-write",
        "random-read",
        "write",
    ):
        do(place, name)
    assert do(place, "read-again") > 0


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("offset", [0, 1_000_000, 300 * PAGE_BYTES - 1])
def test_one_wrong_bit_in_the_file_is_told(place: Place, offset: int) -> None:
    write_file(place, Clock())
    spoil(place.file, offset)
    with pytest.raises(WrongBytes):
        do(place, "read-cold")


def test_a_file_of_another_length_is_told(place: Place) -> None:
    write_file(place, Clock())
    with place.file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(WrongBytes):
        do(place, "read-cold")
    os.truncate(place.file, 1000)
    with pytest.raises(WrongBytes):
        do(place, "read-cold")


def test_a_lost_rewrite_is_told(place: Place) -> None:
    need_file(place)
    before = place.file.read_bytes()
    do(place, "random-write")
    assert place.file.read_bytes() != before
    place.file.write_bytes(before)
    with pytest.raises(WrongBytes):
        do(place, "read-cold")


def test_a_wrong_page_is_told_by_random_reads(place: Place) -> None:
    write_file(place, Clock())
    place.file.write_bytes(bytes(300 * PAGE_BYTES))
    with pytest.raises(WrongBytes):
        do(place, "random-read")


@pytest.mark.parametrize("row", ["list", "stat", "read-small"])
def test_a_small_file_that_is_short_or_lost_is_told(place: Place, row: str) -> None:
    need_small(place)
    name = place.small / place.small_names()[4]
    os.truncate(name, 100)
    with pytest.raises(WrongBytes):
        do(place, row)
    name.unlink()
    with pytest.raises(WrongBytes):
        do(place, row)


def test_small_files_that_are_swapped_are_told(place: Place) -> None:
    need_small(place)
    first, second = (place.small / name for name in place.small_names()[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(WrongBytes):
        do(place, "read-small")


def test_a_process_that_cannot_create_is_told(place: Place, tmp_path: Path) -> None:
    taken = tmp_path / place.small_names()[4]
    taken.write_text("in the way")
    with pytest.raises(OSError, match=f"File exists.*{taken.name}"):
        create_in_parallel(tmp_path, SIZES.files, SIZES.processes, 7)


def test_after_a_failure_half_way_the_file_is_made_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "fsync", broken)
        write_file(place, Clock())
    os.truncate(place.file, 5)
    assert do(place, "read-cold") > 0


def test_no_two_pages_are_alike() -> None:
    content, other = Content(1), Content(2)
    pages = [content.page(FILE, number) for number in range(2 * PAGES_PER_CHUNK)]
    pages += [content.page(FILE, 3, 1), content.page(SMALL, 3), content.page(LOG, 3), other.page(FILE, 3)]
    assert len(set(pages)) == len(pages) and {len(page) for page in pages} == {PAGE_BYTES}
    assert Content(1).page(SMALL, 5) == content.page(SMALL, 5)


def test_a_chunk_is_its_pages() -> None:
    content = Content(1)
    buffer = content.buffer()
    content.fill(buffer, 512, {513: 4})
    pages = [content.page(FILE, 512 + index, 4 if index == 1 else 0) for index in range(PAGES_PER_CHUNK)]
    assert bytes(buffer) == b"".join(pages)


def test_sizes_scale_and_keep_something() -> None:
    assert Sizes().scaled(0.01) == Sizes(655, 10, 2, 5, 4)
    assert Sizes().scaled(1e-9) == Sizes(1, 1, 1, 1, 4)
    assert work("write").words(Sizes()) == "write 256 MiB, fsync"


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *words])


def test_directories_have_names(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert name_directories([str(tmp_path), f"here={tmp_path}"]) == {
        tmp_path.name: tmp_path,
        "here": tmp_path,
    }
    assert name_directories([f"{tmp_path}/a=b"]) == {"a=b": tmp_path / "a=b"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "nothing to measure"),
        (("/nowhere",), "is no directory"),
        (("/", "x=/tmp", "x=/"), "two directories are called x"),
        (("/tmp", "--only", "write,fly"), "there is no row 'fly'"),
        (("/tmp", "--rounds", "0"), "--rounds is at least 1"),
        (("/tmp", "--scale", "0"), "--scale above 0"),
        (("quorumfs=/tmp", "--cluster", "/tmp"), "another name"),
    ],
)
def test_what_cannot_work_is_refused(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_plan(parse(*words))


def test_rows_run_in_their_order() -> None:
    assert [row.name for row in choose_rows("delete, write")] == ["write", "delete"]
    assert choose_rows(None) == ROWS


def test_the_order_of_directories_turns() -> None:
    assert [turn(["a", "b", "c"], number) for number in (1, 2, 3, 4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_caches_that_cannot_be_dropped_are_told(tmp_path: Path) -> None:
    file = tmp_path / "drop_caches"
    caches = Caches([tmp_path], file)
    caches.drop(tmp_path)
    assert file.read_text() == "3\n" and "are dropped" in caches.notes()[0]
    assert not os.listxattr(tmp_path)
    told = Caches([tmp_path], tmp_path / "no" / "drop_caches").notes()
    assert len(told) == 1 and "NOT dropped" in told[0] and "be root" in told[0]
