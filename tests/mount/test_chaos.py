"""A short chaos run, and the harness itself: that it notices what it is there for."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.appends import AppendWork
from tests.chaos.calls import Calls
from tests.chaos.counter import CounterWork, twice
from tests.chaos.database import DatabaseWork
from tests.chaos.files import FileWork
from tests.chaos.load import TURN_SECONDS, has_turn
from tests.chaos.metadata import LOG, MetadataDamage, spoil
from tests.chaos.names import Journal, Known, NamesWork, content_of, look_at, path_of
from tests.chaos.nemesis import KILL_MOUNT, VISIT, WIPE, Fault, Nemesis, damage
from tests.chaos.renames import RenameWork
from tests.chaos.rings import RingWatch
from tests.chaos.timeline import Timeline
from tests.chaos.verify import bad_copies
from tests.chaos.work import Work
from tests.conftest import ClusterFactory
from tests.fault_sweep.outcomes import write
from tests.support import ROOT, take_seed
from tools.access import ClientAccess
from tools.health import await_writable
from wire.ring_head import CHANGES, Head, pack_head, prefix

SEVERAL = 30


def worked(kind: type[Work], place: Path) -> tuple[Work, Calls]:
    """Do several pieces of one kind of work on a local directory, which works."""
    calls = Calls()
    work = kind([place, place], 0, 1, calls)
    for _ in range(SEVERAL):
        work.step()
    work.check()
    assert not calls.wrong, calls.wrong
    assert not calls.lost, calls.lost
    assert calls.bytes_checked > 0
    return work, calls


def test_what_was_wiped_begins_when_its_disk_has_room_again(tmp_path: Path) -> None:
    """Seed 611: a blank server refused to begin on the disk that was full still. Mounts come last."""
    cluster = types.SimpleNamespace(network=None, server_names=["data-1", "data-2", "data-3"])
    for seed in range(20):
        nemesis = Nemesis(cluster, [], seed, Timeline(tmp_path / "timeline"), [])  # type: ignore[arg-type]
        ended: list[str] = []
        with nemesis.round(
            [
                Fault(kind, kind, lambda: None, partial(ended.append, kind))
                for kind in (WIPE, KILL_MOUNT, "fill", "pause")
            ]
        ):
            pass
        assert ended[2:] == [WIPE, KILL_MOUNT]


@pytest.mark.parametrize("kind", [FileWork, AppendWork, RenameWork, CounterWork, NamesWork])
def test_a_file_that_is_gone_is_lost(tmp_path: Path, kind: type[Work]) -> None:
    work, calls = worked(kind, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.name.startswith("new-"):
            path.write_bytes(b"") if kind is AppendWork else path.unlink()
    work.check()
    assert calls.lost


@pytest.mark.parametrize("kind", [FileWork, AppendWork, RenameWork, CounterWork, NamesWork])
def test_a_file_with_other_bytes_is_wrong(tmp_path: Path, kind: type[Work]) -> None:
    work, calls = worked(kind, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes() or b"?")
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    work.check()
    assert calls.wrong


def test_a_name_that_returns_is_wrong(tmp_path: Path) -> None:
    work, calls = worked(NamesWork, tmp_path)
    assert calls.done["removed"]
    present = {path.name for path in (tmp_path / "names" / "0").iterdir()}
    gone = next(number for number in range(10_000) if f"{number:07d}" not in present)
    path_of(tmp_path, 0, gone).write_bytes(content_of(gone, 0))
    work.check()
    assert len(calls.wrong) == 1, calls.wrong
    assert "back" in calls.wrong[0]


def test_a_visit_knows_what_was_acknowledged_before_it(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    journal = Journal(file)
    path_of(tmp_path, 0, 0).parent.mkdir(parents=True)
    for number in range(4):
        path_of(tmp_path, 0, number).write_bytes(content_of(number, 0))
        journal.note("+", number)
    for number in (0, 1):
        journal.note("?", number)
    journal.note("-", 0)
    before = Journal.read(file)
    assert before == Known(frozenset({2, 3}), frozenset({0}))

    def found() -> tuple[int, int]:
        seen = look_at(tmp_path, 0, before, lambda: Journal.read(file), 10)
        return len(seen.lost), len(seen.wrong)

    assert found() == (0, 1)  # 0 is back
    path_of(tmp_path, 0, 0).unlink()
    assert found() == (0, 0)  # of 1, whose removal has begun, nobody knows
    path_of(tmp_path, 0, 2).unlink()
    assert found() == (1, 0)
    journal.note("?", 2)
    assert found() == (0, 0)
    path_of(tmp_path, 0, 3).write_bytes(content_of(3, 0) + b"more")
    assert found() == (0, 1)


def test_nobody_visits_while_the_mount_is_killed(tmp_path: Path) -> None:
    cluster = types.SimpleNamespace(network=None, server_names=["data-1", "data-2", "data-3"])

    def visit() -> Fault:
        return Fault(VISIT, "visitor", lambda: None, lambda: None)

    drawn = set()
    for seed in range(100):
        nemesis = Nemesis(
            cluster,  # type: ignore[arg-type]
            [tmp_path],
            seed,
            Timeline(tmp_path / "timeline"),
            [VISIT, KILL_MOUNT],
            lambda _dice, _found: {VISIT: (1, visit)},
        )
        drawn.add(tuple(fault.kind for fault in nemesis._draw()))
    assert drawn == {(VISIT,), (KILL_MOUNT,)}


def test_changes_told_are_counted_over_all_rings(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    watch = RingWatch(tmp_path / "meta", tmp_path)
    watch.look()
    assert watch.told == 0
    rings = [tmp_path / f"{prefix(tmp_path / 'meta', CHANGES)}{session}" for session in (7, 8)]
    for session, taken in ((0, 20), (0, 25), (1, 3)):
        rings[session].write_bytes(pack_head(Head(bytes(36), session, 1, taken, 0)))
        watch.look()
    rings[0].unlink()
    watch.look()
    assert watch.told == 28


def test_names_have_a_lone_mount_for_themselves_for_a_while(tmp_path: Path) -> None:
    lone, other = [tmp_path, tmp_path], [tmp_path, tmp_path / "other"]
    names, renames = (kind(lone, 0, 1, Calls()) for kind in (NamesWork, RenameWork))
    times = [TURN_SECONDS * part for part in (0.5, 1.5, 2.5, 3.5)]
    assert [has_turn(names, now) for now in times] == [True] * 4
    assert [has_turn(renames, now) for now in times] == [True, False, True, False]
    assert [has_turn(RenameWork(other, 0, 1, Calls()), now) for now in times] == [True] * 4


def test_a_value_given_twice_is_found() -> None:
    assert not twice([[1, 3], [2]])
    assert twice([[1, 3], [3]])


def test_damage_hits_written_pages_only(tmp_path: Path) -> None:
    segment = tmp_path / "1.seg"
    segment.write_bytes(b"x" * 8192 + bytes(1 << 16))
    assert damage(tmp_path, random.Random(1), 3) == 3
    assert segment.read_bytes() != b"x" * 8192 + bytes(1 << 16)
    assert segment.read_bytes()[8192:] == bytes(1 << 16)


@pytest.mark.parametrize("seed", range(20))
def test_a_spoiled_file_is_another_one(tmp_path: Path, seed: int) -> None:
    path, before = tmp_path / "file", random.Random(seed).randbytes(50_000)
    path.write_bytes(before)
    how = spoil(path, random.Random(seed))
    assert (how == "removed") == (not path.exists())
    assert how == "removed" or path.read_bytes() != before


@pytest.mark.parametrize("how", ["beside", "log", "restore"])
def test_damaged_metadata_loses_nothing(how: str, make_cluster: ClusterFactory, tmp_path: Path) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start()
    await_writable(cluster)
    files = {f"file-{n}": b"%d" % n for n in range(20)}
    write(cluster, files)
    damage = MetadataDamage(cluster, take_seed(), tmp_path / "backup")
    _, found = getattr(damage, how)()
    assert found == []
    cluster.start()
    await_writable(cluster)
    access = ClientAccess(cluster)
    assert {name: access.read(name) for name in files} == files
    access.close()


def test_a_start_with_damaged_metadata_is_found(
    make_cluster: ClusterFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start()
    await_writable(cluster)
    write(cluster, {"file": b"content"})
    log, before = cluster.config.metaserver_directory / LOG, bytearray()

    def starts(_damage: MetadataDamage) -> bool:
        assert log.read_bytes() != before
        log.write_bytes(before)
        return False

    monkeypatch.setattr(MetadataDamage, "_is_refused", starts)
    cluster.kill("metaserver")
    before += log.read_bytes()
    assert MetadataDamage(cluster, take_seed(), tmp_path / "backup").log()[1]


def test_a_damaged_copy_counts_only_if_it_is_committed() -> None:
    report = {"replicas": [{"block": "aa", "verdict": "corrupt"}, {"block": "bb", "verdict": "good"}]}
    assert bad_copies(report, {"aa", "bb"})
    assert not bad_copies(report, {"bb"})
    assert bad_copies("it cannot be read", set())


@pytest.mark.parametrize(
    ("minutes", "kinds", "mounts"),
    [
        ("0.05", "kill", "2"),
        ("0.1", "pause mount", "1"),
        pytest.param("0.35", "", "2", marks=pytest.mark.long),
        pytest.param("0.7", "", "1", marks=pytest.mark.long),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces and small disks")
def test_a_short_run(tmp_path: Path, fuse_device: None, minutes: str, kinds: str, mounts: str) -> None:
    seed, answer = take_seed(), tmp_path / "summary.json"
    words = [
        "--mounts",
        mounts,
        "--minutes",
        minutes,
        "--kinds",
        kinds,
        "--seed",
        str(seed),
        "--json",
        str(answer),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(answer.read_text())
    assert sum(summary["faults"].values()) > 0
    assert all(
        summary["done"].get(kind) for kind in ("files", "appends", "renames", "counter", "database", "made")
    )
    assert mounts == "2" or summary["told"] > 0


def test_a_database_is_wrong_if_it_is_malformed_in_the_end(tmp_path: Path) -> None:
    work, calls = worked(DatabaseWork, tmp_path)
    with (tmp_path / "bank.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(3 * 4096))
    with pytest.raises(OSError, match="malformed"):  # so SQLite calls a page that could not be read, too
        for _ in range(SEVERAL):
            work.step()
    assert not calls.wrong
    work.check()
    assert calls.wrong
