"""The quorum over real processes: corrupted, killed, restarted blank; driven through the mediator's RPC."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mediator.vote import predict_read, predict_write
from tests.cluster.quorum_client import SECONDS, connected, outcome
from tests.conftest import ClusterFactory
from tests.support import wait_until
from tools.cluster import LocalCluster
from tools.processes import python_command, python_environment
from wire.errors import DigestMismatch, ReadRefused, WriteRefused
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods, CommonMethods, MediatorMethods, NamespaceMethods
from wire.quorum import Quorum


@pytest.mark.parametrize("read_quorum", [1, 2, 3, 4, 5])
def test_every_cell_of_the_evaluation_table(make_cluster: ClusterFactory, read_quorum: int) -> None:
    quorum = Quorum(5, read_quorum, 5)
    with connected(make_cluster(servers=5, read_quorum=read_quorum)) as client:
        crash_file, _ = client.make("crash", b"content to crash under")
        for count in range(6):
            content = f"content {count}".encode()
            ino, (record,) = client.make(f"corrupt-{count}", content)
            client.corrupt(record, *range(1, count + 1))
            assert outcome(client.read, ino, right=content) == predict_read(quorum, corrupt=count), count
            assert outcome(client.write, ino, b"anew") == predict_write(quorum, corrupt=count)
            assert client.read(ino) == b"anew"
        for count in range(6):
            if count:
                client.kill(count)
            read = outcome(client.read, crash_file, right=b"content to crash under")
            assert read == predict_read(quorum, crashed=count), count
            if count:  # the write that succeeds would change what the following reads expect
                assert outcome(client.write, crash_file, b"late") == predict_write(quorum, crashed=count)


def test_one_server_alone(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(servers=1, read_quorum=1, write_quorum=1)) as client:
        ino, (record,) = client.make("a", b"1234")
        assert client.read(ino) == b"1234"
        client.corrupt(record, 1)
        assert outcome(client.read, ino) == "refused"
        assert outcome(client.write, ino, b"5678") == "right"
        assert client.read(ino) == b"5678"
        client.kill(1)
        assert outcome(client.read, ino) == "refused"
        assert outcome(client.write, ino, b"9012") == "refused"


@pytest.mark.parametrize("rpc", ["msgpack", "xml"])
def test_repair_leaves_all_good_and_the_losers_in_quarantine(make_cluster: ClusterFactory, rpc: str) -> None:
    with connected(make_cluster(rpc=rpc)) as client:
        data = random.Random(5).randbytes(300_000)
        for done, kind in enumerate(("flip", "torn", "zeros", "lie")):
            assert client.quarantined() == [0, done, 0, done, 0]
            ino, (record,) = client.make(kind, data)
            client.corrupt(record, 2, 4, kind=kind)
            assert client.read(ino) == data
            client.await_all_good(ino)
        assert client.quarantined() == [0, 4, 0, 4, 0]
        assert client.status()["repairs"]["quarantined"] == 8


def test_one_read_finds_a_corrupt_replica_wherever_it_is_by_votes_after_the_answer(
    make_cluster: ClusterFactory,
) -> None:
    with connected(make_cluster()) as client:
        data = random.Random(6).randbytes(300_000)
        files = [client.make(f"corrupt-on-{number}", data) for number in range(1, 6)]
        for number, (_, (record,)) in enumerate(files, 1):
            client.corrupt(record, number)
        for ino, _ in files:
            assert client.read(ino) == data
        wait_until(lambda: client.quarantined() == [1] * 5, 10.0, "each corrupt replica to be replaced")
        assert client.status()["later_votes"] == {"waiting": 0, "bytes": 0}
        for ino, _ in files:
            client.await_all_good(ino)


def test_corrupt_replicas_beyond_the_quorum_are_refused_and_left_alone(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster()) as client:
        ino, (record,) = client.make("a.txt", b"1234")
        client.corrupt(record, 1, 2, 3)
        for _ in range(3):
            with pytest.raises(ReadRefused) as caught:
                client.read(ino)
            said = "2 of 5 replicas are good, Qr=3 are needed; 3 corrupt (servers 1, 2, 3)"
            assert caught.value.message == said
        refusal = client.last_refusal(ino)
        assert refusal is not None
        assert (refusal["operation"], refusal["message"]) == ("read", said)
        votes = {"1": "corrupt", "2": "corrupt", "3": "corrupt", "4": "good", "5": "good"}
        assert client.verdicts(ino) == [votes]
        assert client.quarantined() == [0] * 5
        client.write(ino, b"5678")
        assert client.read(ino) == b"5678"


def test_the_last_good_replica_saves_a_file_if_qr_is_set_to_1(make_cluster: ClusterFactory) -> None:
    """As `explain` advises, and as README says."""
    cluster = make_cluster(read_quorum=3, write_quorum=3)
    with connected(cluster) as client:
        ino, (record,) = client.make("a.txt", b"1234")
        client.await_all_good(ino)
        client.corrupt(record, 1, 2, 3, 4)
        with pytest.raises(ReadRefused):
            client.read(ino)
    for numbers in ("Qr = 1\nQw = 5", "Qr = 3\nQw = 3"):
        cluster.stop()
        text = cluster.config_file.read_text()
        cluster.config_file.write_text(re.sub(r"Qr = \d\nQw = \d", numbers, text))
        cluster = LocalCluster.open(cluster.directory)
        with connected(cluster) as client:
            assert client.read(ino) == b"1234"
            client.await_all_good(ino)


@pytest.mark.parametrize("servers", [(1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5)])
def test_the_same_lie_of_a_majority_is_never_believed(
    make_cluster: ClusterFactory, servers: tuple[int, ...]
) -> None:
    with connected(make_cluster()) as client:
        ino, (record,) = client.make("a.txt", b"1234")
        client.corrupt(record, *servers, kind="lie")
        assert outcome(client.read, ino, right=b"1234") == "refused"
        client.write(ino, b"5678")
        assert client.read(ino) == b"5678"


def test_a_blank_server_is_refilled_and_inventories_are_equal(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster()) as client:
        chance = random.Random(9)
        files = {
            client.create(f"f{n}"): chance.randbytes(chance.choice([10, 70_000, 1_500_000]))
            for n in range(30)
        }
        for ino, data in files.items():
            client.write(ino, data)
        client.cluster.restart("data-2", blank=True)
        client.cluster.restart("data-5")
        client.await_states("up", deadline_seconds=30)
        client.await_equal_to_committed()
        refill = client.status()["servers"][1]["refill"]
        assert (refill["state"], refill["done"], refill["failed"]) == ("done", refill["total"], 0)
        assert refill["total"] == len(client.inventories()[0])
        assert all(client.read(ino) == data for ino, data in files.items())


def test_a_blank_majority_counts_after_it_was_filled(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(read_quorum=5)) as client:
        ino, _ = client.make("a", b"1234")
        for number in (1, 2, 3, 4):
            client.cluster.restart(f"data-{number}", blank=True)
        wait_until(lambda: outcome(client.read, ino, right=b"1234") == "right", 15.0, "the read succeeds")
        client.await_all_good(ino)


def test_superseded_blocks_are_deleted_everywhere(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(garbage_grace_seconds=0.2)) as client:
        ino = client.create("a")
        for n in range(10):
            client.write(ino, f"version {n}".encode())
        client.await_equal_to_committed()
        assert [len(inventory) for inventory in client.inventories()] == [1] * 5
        counts = wait_until(
            lambda: (c := client.meta.call(SECONDS, BookkeepingMethods.counts))["garbage_blocks"] == 0 and c,
            15.0,
            "the garbage is forgotten",
        )
        assert counts["blocks"] == 1


def test_garbage_waits_for_a_server_that_is_down(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(write_quorum=4, read_quorum=2, garbage_grace_seconds=0.1)) as client:
        ino, _ = client.make("a", b"first")
        client.kill(3)
        client.write(ino, b"second")
        lengths = [1, 1, 1, 1]
        others = [c for number, c in client.data.items() if number != 3]
        wait_until(
            lambda: [c.call(SECONDS, CommonMethods.status)["blocks"] for c in others] == lengths,
            15.0,
            "the old block is deleted on the servers that are up",
        )
        assert client.meta.call(SECONDS, BookkeepingMethods.counts)["garbage_blocks"] == 1
        client.cluster.start("data-3")
        client.await_equal_to_committed()
        wait_until(
            lambda: client.meta.call(SECONDS, BookkeepingMethods.counts)["garbage_blocks"] == 0,
            15.0,
            "the garbage is forgotten",
        )
        assert client.read(ino) == b"second"


def test_writes_are_refused_at_once_while_a_server_is_down(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster()) as client:
        ino, _ = client.make("a.txt", b"1234")
        client.kill(1, 2)
        begun = time.monotonic()
        with pytest.raises(WriteRefused, match="3 of 5 data servers are up, Qw=5 are needed"):
            client.mediator.call(SECONDS, NamespaceMethods.open, client.session, ino, True)
        with pytest.raises(WriteRefused):
            client.create("b.txt")
        with pytest.raises(WriteRefused):
            client.write(ino, b"9012")
        assert time.monotonic() - begun < 2
        beat = client.mediator.call(SECONDS, MediatorMethods.heartbeat, client.session)
        assert not beat.writable
        assert "quorumfs up" in beat.reason
        assert client.read(ino) == b"1234"
        client.mediator.call(SECONDS, NamespaceMethods.open, client.session, ino, False)
        client.kill(3)
        with pytest.raises(ReadRefused, match=r"3 down \(servers 1, 2, 3\)"):
            client.read(ino)
        client.cluster.start("data-1", "data-2", "data-3")
        client.await_states("up")
        client.write(ino, b"9012")
        assert client.read(ino) == b"9012"


def test_a_heartbeat_does_not_call_a_cluster_unwritable_that_is_back(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster()) as client:
        client.make("a.txt", b"1234")
        for _ in range(3):
            client.kill(1)
            assert not client.mediator.call(SECONDS, MediatorMethods.heartbeat, client.session).writable
            client.cluster.start("data-1")
            assert client.mediator.call(SECONDS, MediatorMethods.heartbeat, client.session).writable


def test_a_paused_server_delays_no_read(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster()) as client:
        data = bytes(500_000)
        ino, _ = client.make("a", data)
        client.cluster.pause("data-2")
        begun = time.monotonic()
        assert all(client.read(ino) == data for _ in range(10))
        assert time.monotonic() - begun < client.cluster.config.deadlines.vote_seconds
        client.await_states("down", 2)
        client.cluster.resume("data-2")
        client.await_states("up", 2)


def test_the_mediator_is_killed_again_and_again_during_writes(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster()) as client:
        contents = {}
        for n in range(30):
            if n % 10 == 5:
                client.cluster.kill("mediator")
                client.cluster.start("mediator")
            ino, _ = client.make(f"f{n}", f"content {n}".encode() * 1000)
            contents[ino] = f"content {n}".encode() * 1000
        assert all(client.read(ino) == data for ino, data in contents.items())
        client.await_equal_to_committed()


def test_two_mediators_side_by_side(make_cluster: ClusterFactory) -> None:
    """What one repairs, refills and collects does not disturb the other."""
    first = make_cluster(garbage_grace_seconds=0.1)
    with connected(first) as client:
        config = first.config_file.read_text().replace(first.config.mediator_listen, "127.0.0.1:0")
        second_file = first.directory / "second.toml"
        second_file.write_text(config)
        with second_mediator(second_file, first):
            for n in range(10):
                ino, (record,) = client.make(f"f{n}", b"old")
                client.corrupt(record, 1 + n % 5)
                assert client.read(ino) == b"old"
                client.write(ino, b"new")
            client.cluster.restart("data-4", blank=True)
            client.await_states("up", deadline_seconds=20)
            client.await_equal_to_committed()


@contextmanager
def second_mediator(config_file: Path, cluster: LocalCluster) -> Iterator[None]:
    """Run one more mediator of a cluster; its log is read with the cluster's."""
    with (cluster.directory / "logs" / "mediator-2.log").open("w") as log:
        process = subprocess.Popen(
            [*python_command("mediator"), "--config", str(config_file)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=python_environment(),
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready mediator")
            yield
        finally:
            process.terminate()
            assert process.wait(20) == 0


def test_a_wrong_witness_is_superseded_and_bad_requests_are_refused(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(servers=3, read_quorum=2, write_quorum=3)) as client:
        ino, (record,) = client.make("a", b"1234")
        unknown = BlockRecord(bytes(16), 4, record.digest)
        with pytest.raises(ReadRefused) as caught:
            client.mediator.call(SECONDS, MediatorMethods.read_block, ino, unknown, 0, 0)
        assert caught.value.detail["reason"] == "superseded"
        with pytest.raises(DigestMismatch):
            client.mediator.call(SECONDS, MediatorMethods.put_block, b"\1" * 16, bytes(32), b"x", False)
        usage = client.mediator.call(SECONDS, MediatorMethods.usage)
        assert 0 < usage.free_bytes <= usage.total_bytes
        assert usage.files > usage.free_files > 0
