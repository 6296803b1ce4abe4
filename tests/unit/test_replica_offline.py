"""A stopped server's directory looked at from outside, as `quorumfs replica` shows it."""

from __future__ import annotations

import json
import random
import resource
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from dataserver import offline
from dataserver.directory import DataDirectory
from dataserver.offline import locate, read
from dataserver.segment import segment_paths
from dataserver.segments import SegmentStore
from tools.cli import main
from wire.config import ConfigError
from wire.digest import block_digest

LENGTHS = (10, 5000, 300_000, 0, 70_000)


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def content(number: int) -> bytes:
    return random.Random(number).randbytes(LENGTHS[number])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = DataDirectory(tmp_path / "data-2", "c", 2)
    store = SegmentStore(directory.path, segment_bytes=100_000)
    for number in reversed(range(len(LENGTHS))):
        store.put(block_id(number), block_digest(content(number)), content(number))
    store.close()
    directory.release()
    return directory.path


def snapshot(place: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_all_replicas_are_listed_and_nothing_is_changed(place: Path) -> None:
    before = snapshot(place)
    listing = read(place, verify=True)
    assert (listing.cluster, listing.number, listing.healthy) == ("c", 2, True)
    assert [replica.block for replica in listing.replicas] == [block_id(n) for n in range(len(LENGTHS))]
    assert [replica.length for replica in listing.replicas] == list(LENGTHS)
    assert {replica.verdict for replica in listing.replicas} == {"good"}
    for number, replica in enumerate(listing.replicas):
        raw = replica.path.read_bytes()
        assert raw[replica.payload_offset :][: replica.length] == content(number)
    assert snapshot(place) == before


def test_a_directory_whose_name_looks_like_markup(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place.parent / "[").mkdir()
    named = place.rename(place.parent / "[" / "a]")  # "[/a]" would close what was never opened
    [replica] = [replica for replica in read(named, verify=False).replicas if replica.block == block_id(2)]
    with replica.path.open("r+b") as file:
        file.seek(replica.payload_offset)
        file.write(bytes(4096))
    assert main(["replica", "verify", str(named)]) == 1
    assert f"in {replica.path} at" in capsys.readouterr().out


def test_it_needs_no_index(place: Path) -> None:
    (place / "index.sqlite").write_bytes(b"garbage")
    assert len(read(place, verify=True).replicas) == len(LENGTHS)
    (place / "index.sqlite").unlink()
    assert len(read(place, verify=True).replicas) == len(LENGTHS)


def test_dd_at_the_located_place_corrupts_it(place: Path) -> None:
    replica = locate(place, block_id(2))
    assert replica is not None
    subprocess.run(
        [
            *("dd", "if=/dev/zero", f"of={replica.path}", "bs=1", "count=7", "conv=notrunc", "status=none"),
            f"seek={replica.payload_offset + replica.length - 7}",
        ],
        check=True,
    )
    listing = read(place, verify=True)
    assert [r.block for r in listing.replicas if r.verdict == "corrupt"] == [block_id(2)]
    assert not listing.healthy
    assert read(place, verify=False).healthy, "without looking at bytes nothing is wrong"


def test_a_damaged_header_is_a_damaged_region(place: Path) -> None:
    replica = locate(place, block_id(4))
    assert replica is not None
    with replica.path.open("r+b") as file:
        file.seek(replica.header_offset)
        file.write(b"\xff" * 100)
    listing = read(place, verify=False)
    assert locate(place, block_id(4)) is None
    assert [(region.path, region.offset) for region in listing.damage] == [
        (replica.path, replica.header_offset)
    ]


def test_of_two_records_the_later_good_one_is_shown(place: Path) -> None:
    replica = locate(place, block_id(1))
    assert replica is not None
    store = SegmentStore(place)
    with replica.path.open("r+b") as file:
        file.seek(replica.payload_offset)
        file.write(b"\xff" * 100)
    store._index.free = lambda entry: None  # type: ignore[method-assign]  # killed before the old one was freed
    store.repair(block_id(1), block_digest(content(1)), content(1), "test")
    store.close()
    shown = locate(place, block_id(1))
    assert shown is not None
    assert (shown.path, shown.header_offset) != (replica.path, replica.header_offset)
    assert read(place, verify=True).healthy


def test_what_is_no_data_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no server\.json"):
        read(tmp_path, verify=False)


class TestCommand:
    def test_healthy(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["replica", "ls", str(place)]) == 0
        assert block_id(3).hex() in capsys.readouterr().out
        assert main(["replica", "verify", "--json", str(place)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["healthy"] is True
        assert [replica["length"] for replica in told["replicas"]] == list(LENGTHS)

    def test_locate(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        replica = locate(place, block_id(2))
        assert replica is not None
        assert main(["replica", "locate", str(place), block_id(2).hex()]) == 0
        out = capsys.readouterr().out
        assert str(replica.path) in out
        assert str(replica.payload_offset) in out

    def test_damage_makes_the_exit_status_1(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        replica = locate(place, block_id(2))
        assert replica is not None
        with replica.path.open("r+b") as file:
            file.seek(replica.payload_offset)
            file.write(b"other bytes")
        assert main(["replica", "verify", str(place)]) == 1
        assert f"corrupt {block_id(2).hex()}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words", [["ls", "/nowhere"], ["locate", "HERE", "xyz"], ["locate", "HERE", "ff" * 16]]
    )
    def test_bad_input_makes_it_2(
        self, place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["replica", *(str(place) if word == "HERE" else word for word in words)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_more_segments_than_files_may_be_open_at_first(tmp_path: Path) -> None:
    """A shell lets a command open 1,024: two for each GiB."""
    DataDirectory(tmp_path, "test", 1).release()
    with closing(SegmentStore(tmp_path, segment_bytes=1)) as store:
        for number in range(40):
            store.put(block_id(number), block_digest(b"bytes"), b"bytes")
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 40, most))
    try:
        assert len(read(tmp_path, verify=True).replicas) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))


def test_a_segment_that_a_running_server_unlinks_meanwhile_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listing was made just before."""
    DataDirectory(tmp_path, "test", 1).release()
    with closing(SegmentStore(tmp_path, segment_bytes=1)) as store:
        for number in (1, 2):
            store.put(block_id(number), block_digest(b"bytes"), b"bytes")
        paths = segment_paths(tmp_path / "segments")
        store.delete([block_id(1)])
        store.maintain()
        monkeypatch.setattr(offline, "segment_paths", lambda _: paths)
        assert [replica.block for replica in read(tmp_path, verify=True).replicas] == [block_id(2)]
        assert offline.segment_bytes(tmp_path) == store.locate(block_id(2)).path.stat().st_size
