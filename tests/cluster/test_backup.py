"""The commands backup, restore and rebuild, on a cluster of real processes."""

from __future__ import annotations

import errno
import json
import shutil
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from metaserver import copies
from tests.cluster.quorum_client import QuorumClient, connected
from tests.conftest import ClusterFactory
from tests.support import run_command, wait_until
from tools import cli
from tools.cluster import LocalCluster
from wire.errors import ReadRefused, SessionUnknown
from wire.messages import ROOT_INODE, BlockRecord
from wire.methods import BookkeepingMethods, DataMethods, MediatorMethods, NamespaceMethods

SECONDS = 15.0


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    return make_cluster(servers=3, read_quorum=2, write_quorum=3)


def run(cluster: LocalCluster, command: str, *words: str) -> Any:
    """Run a command that must work; return what it printed as JSON."""
    done = run_command(cluster.directory, command, "--json", "--state", str(cluster.directory), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def refusal(cluster: LocalCluster, command: str, *words: str) -> str:
    """Run a command that cannot work; return its one line."""
    done = run_command(cluster.directory, command, "--state", str(cluster.directory), *words)
    assert done.returncode in (1, 2), done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def content(client: QuorumClient, name: str) -> bytes | None:
    """Return a file's contents, None if there is no such file."""
    found = client.mediator.call(SECONDS, NamespaceMethods.resolve, ROOT_INODE, [name.encode()])
    return client.read(found[0].ino) if found else None


def held(client: QuorumClient, record: BlockRecord) -> int:
    """Return how many data servers hold a block."""
    before = (int.from_bytes(record.block, "big") - 1).to_bytes(16, "big")
    pages = [data.call(SECONDS, DataMethods.inventory, before, 1) for data in client.data.values()]
    return sum(page == [record] for page in pages)


def stored_copies(client: QuorumClient) -> int:
    """Return when the newest copy on the data servers was begun, in nanoseconds; 0 if there is none."""
    return int(client.status()["metadata_copies"]["newest_ns"])


def without_copies(cluster: LocalCluster) -> LocalCluster:
    """Return the same cluster, stopped, that stores no copies from now on."""
    cluster.stop()
    text = cluster.config_file.read_text()
    assert "metadata_copy_seconds = 0.5" in text
    cluster.config_file.write_text(text.replace("metadata_copy_seconds = 0.5", "metadata_copy_seconds = 0.0"))
    return LocalCluster.open(cluster.directory)


@pytest.fixture
def copied(make_cluster: ClusterFactory) -> LocalCluster:
    """A stopped cluster with two files, and copies on its data servers that know both."""
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3, metadata_copy_seconds=0.5)
    with connected(cluster) as client:
        client.make("first", b"1234")
        client.make("second", bytes(3 << 20))
        written_ns = time.time_ns()
        wait_until(lambda: stored_copies(client) > written_ns, 20, "a copy")
        assert run(cluster, "fsck")["clean"]
        for row in run(cluster, "df"):
            assert (row["live_bytes"], row["dead_bytes"]) == (4 + (3 << 20), 0), "copies are not dead bytes"
            assert row["copies_bytes"] > 0
        assert "runs at" in refusal(cluster, "rebuild")
    return without_copies(cluster)


def test_the_data_servers_alone_bring_the_files_back(copied: LocalCluster) -> None:
    with connected(copied) as client:
        _, newer = client.make("newer", b"5678")
    copied.stop()
    assert "is there" in refusal(copied, "rebuild")
    shutil.rmtree(copied.config.metaserver_directory)
    with connected(copied) as client:
        assert content(client, "first") is None, "a new file system was begun"
        client.make("mistaken", b"0")
        compare_inventories(client)
        assert held(client, newer[0]) == 3
    copied.stop()
    blank = copied.config.data_servers[2].directory
    shutil.rmtree(blank)
    assert "is there" in refusal(copied, "rebuild")
    said = run(copied, "rebuild", "--replace")
    assert said["agreeing_servers"] == 2
    assert list(said["unseen_servers"]) == ["3"]
    assert (said["lost_blocks"], said["newer_blocks"], said["newer_bytes"]) == (0, 2, 5)
    blank.mkdir()
    with connected(copied) as client:
        assert content(client, "first") == b"1234"
        assert content(client, "second") == bytes(3 << 20)
        assert content(client, "newer") is None
        client.make("after", b"9")
        wait_until(lambda: run_command(copied.directory, "fsck", "--state", ".").returncode == 0, 30, "whole")
        compare_inventories(client)
        assert held(client, newer[0]) == 2


def test_a_lost_configuration_is_printed_again(copied: LocalCluster, tmp_path: Path) -> None:
    text = copied.config_file.read_text()
    run(copied, "backup", str(tmp_path / "copy"))
    copied.config_file.unlink()
    told = refusal(copied, "up", str(tmp_path / "mnt"))
    assert "config --from" in told

    def printed(source: Path) -> str:
        done = run_command(tmp_path, "config", "--from", str(source))
        assert done.returncode == 0, done.stderr
        return done.stdout

    for source in (
        tmp_path / "copy",
        copied.config.metaserver_directory,
        copied.config.data_servers[1].directory,
    ):
        assert tomllib.loads(printed(source)) == tomllib.loads(text) | {"metadata_copy_seconds": 0.5}
    (tmp_path / "none").write_bytes(b"")
    for source in (tmp_path / "none", tmp_path / "missing", tmp_path):
        done = run_command(tmp_path, "config", "--from", str(source))
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    copied.config_file.write_text(printed(copied.config.data_servers[1].directory))
    with connected(LocalCluster.open(copied.directory)) as client:
        assert content(client, "first") == b"1234"


@pytest.mark.long
@pytest.mark.damages("a file is overwritten after the copy")
def test_running_data_servers_serve_as_well_and_what_is_lost_is_named(copied: LocalCluster) -> None:
    with connected(copied) as client:
        found = client.mediator.call(SECONDS, NamespaceMethods.resolve, ROOT_INODE, [b"second"])
        old = client.mediator.call(SECONDS, NamespaceMethods.file_map, found[0].ino, 0, 10).extents
        client.write(found[0].ino, b"new")
        records = [BlockRecord(each.block, each.block_length, each.digest) for each in old]
        wait_until(lambda: not any(held(client, record) for record in records), 20, "garbage deleted")
        copied.kill("mediator")
        copied.kill("metaserver")
        shutil.rmtree(copied.config.metaserver_directory)
        done = run_command(copied.directory, "rebuild", "--json", "--state", str(copied.directory))
        assert done.returncode == 1, done.stderr
        said = json.loads(done.stdout)
        assert (said["lost_blocks"], said["lost_paths"], said["agreeing_servers"]) == (3, ["/second"], 3)
        assert not said["unseen_servers"]
    copied.stop()
    with connected(copied) as client:
        assert content(client, "first") == b"1234"
        with pytest.raises(ReadRefused):
            content(client, "second")


def compare_inventories(client: QuorumClient) -> None:
    """Have all inventories compared, which deletes what may be deleted."""
    for number in client.data:
        client.mediator.call(SECONDS, MediatorMethods.refill, number)
    client.await_states("up")


def test_what_was_copied_comes_back_and_what_is_newer_is_kept(cluster: LocalCluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with connected(cluster) as client:
        client.make("first", b"1234")
        client.make("second", bytes(3 << 20))
        session = client.session
        assert run(cluster, "backup", str(copy))["blocks"] == 4
        assert "exists already" in refusal(cluster, "backup", str(copy))
        _, newer = client.make("newer", b"5678")
        assert "runs at" in refusal(cluster, "restore", str(copy))
    cluster.stop()
    shutil.rmtree(cluster.config.metaserver_directory)
    said = run(cluster, "restore", str(copy))
    assert said["kept_sessions"] == [session + 1, session]
    with connected(cluster) as client:
        assert client.session > 2**32
        assert content(client, "first") == b"1234"
        assert content(client, "second") == bytes(3 << 20)
        assert content(client, "newer") is None
        assert run(cluster, "fsck")["clean"]
        _, after = client.make("after", b"9")
        compare_inventories(client)
        assert held(client, newer[0]) == held(client, after[0]) == 3
        with pytest.raises(SessionUnknown):
            client.meta.call(SECONDS, BookkeepingMethods.renew, session)
    cluster.stop()
    assert run(cluster, "restore", "--release")["released"] == 3
    with connected(cluster) as client:
        wait_until(lambda: compare_inventories(client) or not held(client, newer[0]), 30, "deleted")
        assert content(client, "after") == b"9"


def test_a_wrong_restore_is_undone(cluster: LocalCluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    meta = cluster.config.metaserver_directory
    with connected(cluster) as client:
        client.make("first", b"1234")
        run(cluster, "backup", str(copy))
        client.make("newer", b"5678")
        cluster.kill("mediator")
        cluster.kill("metaserver")  # so that what is newer is in the log alone
    before = Path(run(cluster, "restore", str(copy))["before"])
    with connected(cluster) as client:
        assert content(client, "newer") is None
        _, mistaken = client.make("mistaken", b"0")
        compare_inventories(client)
    cluster.stop()
    assert "in use now" in refusal(cluster, "restore", str(meta))
    assert "in use now" in refusal(cluster, "restore", str(meta / "meta.sqlite"))
    assert "has no meta.sqlite" in refusal(cluster, "restore", str(tmp_path))
    undone = Path(run(cluster, "restore", str(before / "meta.sqlite"))["before"])
    with connected(cluster) as client:
        assert content(client, "first") == b"1234"
        assert content(client, "newer") == b"5678"
        assert content(client, "mistaken") is None
        assert run(cluster, "fsck")["clean"]
        compare_inventories(client)
        assert held(client, mistaken[0]) == 3, "kept, as this may be the wrong one after all"
    cluster.stop()
    done = run_command(cluster.directory, "restore", "--state", str(cluster.directory), str(undone))
    assert f"restore {meta.name}/before-restore-3 --state" in done.stdout, done.stdout + done.stderr
    with connected(cluster) as client:
        assert content(client, "newer") is None
        assert content(client, "mistaken") == b"0"
    cluster.stop()
    kept, never_served = (Path(run(cluster, "restore", str(copy))["before"]) for _ in range(2))
    for database in (never_served, kept):
        run(cluster, "restore", str(database / "meta.sqlite"))
    with connected(cluster) as client:
        assert content(client, "mistaken") == b"0"
    assert not list(meta.rglob("*.partial*"))


def test_a_stopped_cluster_is_copied_and_a_damaged_copy_refused(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with connected(cluster) as client:
        client.make("first", b"1234")
    cluster.stop()
    copy = tmp_path / "copy"
    run(cluster, "backup", str(copy))
    contents = bytearray(copy.read_bytes())
    contents[5000] ^= 1
    (tmp_path / "damaged").write_bytes(contents)
    database = cluster.config.metaserver_directory / "meta.sqlite"
    before = database.read_bytes()
    assert "damaged" in refusal(cluster, "restore", str(tmp_path / "damaged"))
    (tmp_path / "other").write_bytes(b"")
    for other in ("damaged", "other"):
        assert "restore FILE" not in refusal(cluster, "restore", str(tmp_path / other)), "it is that file"
    assert database.read_bytes() == before
    before_restore = run(cluster, "restore", str(copy))["before"]
    assert (Path(before_restore) / "meta.sqlite").read_bytes() == before
    with connected(cluster) as client:
        assert content(client, "first") == b"1234"


def test_a_backup_touches_no_other_file(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.start("metaserver")
    (tmp_path / "copy.partial").write_text("precious")
    for name in ("copy", "copy-stopped"):
        run(cluster, "backup", str(tmp_path / name))
        cluster.stop()
    assert (tmp_path / "copy.partial").read_text() == "precious"
    assert {path.name for path in tmp_path.glob("copy*")} == {"copy", "copy-stopped", "copy.partial"}


def test_two_backups_to_one_name(
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The later one replaced the copy that the other had said to be there."""
    cluster.start()
    inspect, target = copies.inspect, tmp_path / "copy"

    def inspect_slowly(*args: Any) -> copies.Copy:
        found = inspect(*args)
        monkeypatch.setattr(copies, "inspect", inspect)
        assert cli.main(["backup", str(target), "--state", str(cluster.directory)]) == 0
        target.write_bytes(target.read_bytes() + b"the other one's")
        return found

    monkeypatch.setattr(copies, "inspect", inspect_slowly)
    assert cli.main(["backup", str(target), "--state", str(cluster.directory)]) == 1
    assert "made meanwhile by another command" in capsys.readouterr().err
    assert target.read_bytes().endswith(b"the other one's")
    assert list(tmp_path.glob("copy*")) == [target]


def test_a_backup_that_is_killed_has_no_name_or_is_whole(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name was that of an empty file just before."""
    cluster.start()
    target = tmp_path / "copy"

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with suppress(KeyboardInterrupt):
        cli.main(["backup", str(target), "--state", str(cluster.directory)])
    assert not target.exists() or copies.inspect(target, cluster.config.cluster).inodes


def test_a_backup_whose_name_may_be_lost_is_there_all_the_same(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on some network disks, which do not sync directories."""

    def refuse(path: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    cluster.start("metaserver")
    cluster.stop()
    copy = tmp_path / "copy"
    with monkeypatch.context() as patched:
        patched.setattr(copies, "sync_name", refuse)
        assert cli.main(["backup", str(copy), "--state", str(cluster.directory)]) == 1
    assert f"{copy} is there and whole, but a power loss may take it away" in capsys.readouterr().err
    run(cluster, "restore", str(copy))


def test_the_configuration_of_what_is_no_copy(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    said = refusal(cluster, "config", "--from", str(tmp_path / "notes"))
    assert "name a backup, meta/ or a data server's directory" in said
    assert "restore" not in said


def test_a_rebuild_without_a_copy_says_what_else_there_is(cluster: LocalCluster) -> None:
    cluster.start()
    cluster.stop()
    state = f"--state {cluster.directory}"
    said = refusal(cluster, "rebuild", "--replace")
    assert f"`quorumfs restore FILE {state}`" in said
    assert f"`quorumfs rebuild --replace --fewer {state}`" in said
    said = refusal(cluster, "rebuild", "--replace", "--fewer")
    assert f"`quorumfs restore FILE {state}`" in said
    assert "--fewer" not in said


@pytest.mark.damages("a page of the database is overwritten")
def test_the_backup_of_a_damaged_database_says_so(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.start("metaserver")
    cluster.stop()
    database = cluster.config.metaserver_directory / "meta.sqlite"
    with database.open("r+b") as file:
        file.seek(5 * 4096 + 100)
        file.write(b"other bytes than before")
    said = refusal(cluster, "backup", str(tmp_path / "copy"))
    assert f"{database} is damaged (pages: 6)" in said
    assert not list(tmp_path.glob("copy*"))
