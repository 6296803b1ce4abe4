"""Whose a data directory is: blank, one's own, another's, a newer one's, in use, emptied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dataserver.directory
from dataserver.directory import DataDirectory, empty
from dataserver.segments import SegmentStore
from wire.config import FORMAT_VERSION, ConfigError
from wire.digest import block_digest
from wire.ring_head import BLOCKS, prefix


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data-1"


def claim(place: Path, cluster: str = "c", number: int = 1) -> None:
    DataDirectory(place, cluster, number).release()


def test_a_blank_directory_becomes_this_servers(place: Path) -> None:
    claim(place)
    told = json.loads((place / "server.json").read_text())
    assert told == {"format": FORMAT_VERSION, "cluster": "c", "number": 1, "id": told["id"]}
    claim(place)
    assert json.loads((place / "server.json").read_text()) == told


def test_one_that_is_begun_in_its_place_is_another(place: Path) -> None:
    claim(place)
    before = prefix(place, BLOCKS)
    (place / "server.json").unlink()
    claim(place)
    assert prefix(place, BLOCKS) != before


def test_what_a_killed_server_was_given_goes_when_its_directory_is_emptied(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataserver.directory, "SHARED_MEMORY", tmp_path)
    claim(place)
    own, others = tmp_path / f"{prefix(place, BLOCKS)}1", tmp_path / "quorumfs-blocks-2"
    own.touch()
    others.touch()
    empty(place, "c", 1)
    assert not own.exists() and others.exists()


def test_what_a_killed_start_leaves_is_blank(place: Path) -> None:
    place.mkdir()
    (place / "server.json.tmp").write_text('{"for')
    claim(place)


@pytest.mark.parametrize(("cluster", "number"), [("other", 1), ("c", 2)])
def test_anothers_directory_is_refused(place: Path, cluster: str, number: int) -> None:
    claim(place, cluster, number)
    with pytest.raises(ConfigError, match=f"belongs to data server {number} of cluster {cluster}"):
        claim(place)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "7", '{"format": 1, "cluster": "c"}', f'{{"format": {FORMAT_VERSION + 1}, "x": 1}}'],
)
def test_an_identity_that_cannot_be_read_is_refused(place: Path, content: str) -> None:
    place.mkdir()
    (place / "server.json").write_text(content)
    with pytest.raises(ConfigError):
        claim(place)
    assert (place / "server.json").read_text() == content


def test_a_newer_format_is_refused(place: Path) -> None:
    claim(place)
    told = json.loads((place / "server.json").read_text()) | {"format": FORMAT_VERSION + 1}
    (place / "server.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=f"has format {FORMAT_VERSION + 1}"):
        claim(place)


def test_a_directory_with_other_things_in_it_is_refused(place: Path) -> None:
    place.mkdir()
    (place / "thesis.tex").write_text("text")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        claim(place)
    assert not (place / "server.json").exists()


def test_what_is_no_directory_is_refused(place: Path) -> None:
    place.write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used"):
        claim(place)


def test_one_process_at_a_time(place: Path) -> None:
    first = DataDirectory(place, "c", 1)
    with pytest.raises(ConfigError, match="served by another process"):
        claim(place)
    first.release()
    claim(place)


def test_emptying_leaves_the_identity_only(place: Path) -> None:
    directory = DataDirectory(place, "c", 1)
    store = SegmentStore(place)
    store.put(bytes(16), block_digest(b"x"), b"x")
    store.repair(bytes(16), block_digest(b"y"), b"y", "to fill the quarantine")
    store.close()
    directory.discard_contents()
    directory.release()
    claim(place)
    assert [entry.name for entry in place.iterdir()] == ["server.json"]
    store = SegmentStore(place)
    assert store.count() == 0
    store.close()


def test_emptying_leaves_what_is_of_the_disk_that_is_mounted_there(place: Path) -> None:
    """Who is not root cannot remove it: no data server on a disk of its own could be started blank."""
    claim(place)
    for name in ("lost+found", "segments"):
        (place / name).mkdir()
    empty(place, "c", 1)
    assert [entry.name for entry in place.iterdir()] == ["lost+found"]
    claim(place)


@pytest.mark.parametrize("name", ["server.json.tmp", "scrub.json.tmp", "milestones.json.tmp"])
def test_what_a_kill_leaves_of_a_small_file_is_a_data_servers(place: Path, name: str) -> None:
    claim(place)
    (place / "server.json").write_text("{")
    (place / name).write_text("{")
    empty(place, "c", 1)
    assert not list(place.iterdir())
