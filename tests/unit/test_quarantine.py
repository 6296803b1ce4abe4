"""The quarantine's bounds, and the ledger's files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dataserver.quarantine
from dataserver.quarantine import Kept, Quarantine, too_many
from metaserver.ledger import MOST_ENTRIES, Ledger
from wire.errors import BlockMissing, InvalidArgument

KEPT = {"old": Kept(0, 10), "middle": Kept(50, 10), "new": Kept(100, 10)}


@pytest.mark.parametrize(
    ("most_bytes", "most_seconds", "going"),
    [
        (30, 100, []),
        (29, 100, ["old"]),
        (10, 100, ["old", "middle"]),
        (0, 100, ["old", "middle", "new"]),
        (30, 99, ["old"]),
        (30, 40, ["old", "middle"]),
    ],
)
def test_the_oldest_copies_go_first(most_bytes: int, most_seconds: float, going: list[str]) -> None:
    assert too_many(KEPT, 100, most_bytes, most_seconds) == going


def test_a_quarantine_is_found_again_listed_and_trimmed(tmp_path: Path) -> None:
    place = tmp_path / "quarantine"
    kept = Quarantine(place)
    for number in range(5):
        kept.keep(bytes([number]) * 16, b"raw" * 1000 + bytes([number]), bytes(32), None, f"note {number}")
    kept.keep(bytes(16), b"raw" * 1000 + bytes([0]), bytes(32), None, "again")
    again = Quarantine(place, most_bytes=3 * 3001)
    names = [copy["name"] for copy in again.page("", 10)]
    assert (again.count, again.length, len(names)) == (5, 5 * 3001, 5)
    assert [copy["name"] for copy in again.page(names[1], 2)] == names[2:4]
    assert again.page("", 1)[0]["note"] == "note 0"
    assert again.read(names[4]).endswith(bytes([4]))
    assert again.trim() == 2
    assert (again.count, len(list(place.iterdir()))) == (3, 6)
    assert again.remove(again.page("", 1)[0]["name"].split()) == 1
    assert Quarantine(place).count == 2
    for name in ("../server", "x", "", "ab-0123456789abcde/"):
        with pytest.raises(InvalidArgument):
            again.read(name)
        with pytest.raises(InvalidArgument):
            again.remove([name])
    with pytest.raises(BlockMissing):
        again.read("ab-0123456789abcdef")


@pytest.mark.parametrize("file", ["json", "raw"])
def test_a_copy_that_cannot_be_kept_leaves_nothing(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails for lack of room must not take any."""
    kept = Quarantine(tmp_path / "quarantine")
    real = os.fsync

    def fsync(handle: int) -> None:
        if f".{file}." in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="space"):
        kept.keep(bytes(16), b"raw" * 1000, bytes(32), None, "")
    assert (kept.count, list((tmp_path / "quarantine").iterdir())) == (0, [])


@pytest.mark.parametrize("during", ["keep", "remove"])
def test_a_note_without_its_copy_is_removed_by_the_next_start(
    during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "quarantine"
    kept = Quarantine(place)
    kept.keep(bytes(16), b"raw", bytes(32), None, "stays")
    real = Path.unlink

    def die(path: Path, *more: object, **named: Any) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, **named)

    with monkeypatch.context() as killed:
        if during == "remove":
            kept.keep(bytes(16), b"other", bytes(32), None, "goes")
            killed.setattr(Path, "unlink", die)
            with pytest.raises(KeyboardInterrupt):
                kept.remove([kept.page("", 10)[1]["name"]])
        else:
            write = dataserver.quarantine.write_file

            def write_note(path: Path, content: bytes) -> None:
                if path.suffix == ".raw":
                    raise KeyboardInterrupt
                write(path, content)

            killed.setattr(dataserver.quarantine, "write_file", write_note)
            with pytest.raises(KeyboardInterrupt):
                kept.keep(bytes(16), b"other", bytes(32), None, "never kept")
    (place / "mine.json").write_bytes(b"to be looked at")
    assert len(list(place.iterdir())) == 4
    again = Quarantine(place)
    assert again.count == 1
    (left,) = again.page("", 10)
    assert left["note"] in ("stays", "goes")
    assert sorted(file.name for file in place.iterdir()) == [
        f"{left['name']}.json",
        f"{left['name']}.raw",
        "mine.json",
    ]


def test_a_file_that_somebody_put_there_is_left_alone(tmp_path: Path) -> None:
    """It is no copy: it is neither counted nor removed, and holds up the removal of none."""
    place = tmp_path / "quarantine"
    Quarantine(place).keep(bytes(16), b"raw", bytes(32), None, "")
    (place / "mine.raw").write_bytes(b"to be looked at")
    os.utime(place / "mine.raw", (0, 0))
    kept = Quarantine(place, most_bytes=0)
    assert (kept.count, kept.trim()) == (1, 1)
    assert [file.name for file in place.iterdir()] == ["mine.raw"]


def test_copies_do_not_get_old_by_the_date_being_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"time": 0.0, "monotonic": 50.0}
    clocks = {name: lambda name=name: now[name] for name in now}
    monkeypatch.setattr(dataserver.quarantine, "time", SimpleNamespace(**clocks))
    kept = Quarantine(tmp_path / "quarantine", most_seconds=100.0)
    kept.keep(bytes(16), b"raw", bytes(32), None, "of 1970")
    now["time"] += 1e9
    assert kept.trim() == 0
    now["monotonic"] += 101.0
    assert kept.trim() == 1


def test_the_ledger_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, most_file_bytes=1000)
    for number in range(200):
        ledger.append([{"number": number}])
    newest = ledger.newest(50)
    assert [entry["number"] for entry in newest] == list(range(199, 149, -1))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"number": 2')
    ledger.append([{"number": 200}])
    assert [entry["number"] for entry in Ledger(tmp_path).newest(2)] == [200, 199]
    for wrong in ([{"long": "x" * 5000}], [{}] * (MOST_ENTRIES + 1), [{"bytes": b""}]):
        with pytest.raises(InvalidArgument):
            ledger.append(wrong)
