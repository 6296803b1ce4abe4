"""No server takes more than 200 MiB, whatever its peers send it; meanwhile it answers others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.quorum_client import QuorumClient, connected
from tests.conftest import ClusterFactory, SmallDisk
from tests.support import ROOT
from wire.blocking import BlockingClient
from wire.methods import CommonMethods

PROMISED_MIB = 200
SECONDS = 10.0
ANSWER_SECONDS = 20.0
SMALL_DISK_BYTES = 64 * 1024 * 1024


@pytest.fixture(autouse=True)
def removed(tmp_path: Path) -> Iterator[None]:
    """Keep nothing of a test: each floods servers with gigabytes."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def whole(small_disk: SmallDisk, whole: None) -> None:
    """The disks go after the check that what lies on them is whole."""


def most_mib(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.long
@pytest.mark.parametrize("peers", [100, 900])
@pytest.mark.parametrize("kind", ["xml-puts", "puts", "multicalls", "xml-multicalls", "medium", "mixed"])
@pytest.mark.parametrize(("role", "put"), [("data-1", "put"), ("mediator", "put_block")])
def test_puts(make_cluster: ClusterFactory, kind: str, role: str, put: str, peers: int) -> None:
    """A data server took 1,245 MiB when 100 peers sent calls of many puts."""
    with connected(make_cluster()) as client:
        flood(client, role, [kind, "--put", put, "--peers", str(peers)])
        assert client.read(client.make("after", b"it serves")[0]) == b"it serves"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["puts", "medium", "xml-puts", "multicalls"])
@pytest.mark.parametrize(("role", "put"), [("data-1", "put"), ("mediator", "put_block")])
def test_puts_on_full_disks(
    small_disk: SmallDisk, make_cluster: ClusterFactory, kind: str, role: str, put: str
) -> None:
    """What puts had that were refused stayed until the garbage collector came: 866 MiB of the mediator."""
    cluster = make_cluster(reserve_bytes=1024 * 1024)
    for directory in (each.directory for each in cluster.config.data_servers):
        small_disk(directory, SMALL_DISK_BYTES)
    with connected(cluster) as client:
        flood(client, role, [kind, "--put", put, "--peers", "900"])


@pytest.mark.long
@pytest.mark.parametrize("peers", [250, 900])
def test_syncs(make_cluster: ClusterFactory, peers: int) -> None:
    """54,703 of them in flight took 251 to 377 MiB of the metadata server."""
    with connected(make_cluster()) as client:
        flood(client, "metaserver", ["syncs", "--peers", str(peers)])


def flood(client: QuorumClient, role: str, options: list[str]) -> None:
    """Flood one server of a cluster, and call it all the time."""
    server = client.cluster.process(role).pid()
    assert server is not None
    command = [sys.executable, "-m", "tests.cluster.flood", options[0], client.cluster.address(role)]
    command += [*options[1:], "--seconds", str(SECONDS)]
    waits = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as flooding:
        while flooding.poll() is None:
            begin = time.monotonic()
            with closing(BlockingClient([client.cluster.address(role)])) as other:
                other.call(ANSWER_SECONDS, CommonMethods.identity)
            waits.append(time.monotonic() - begin)
        assert flooding.stdout is not None
        answered = int(flooding.stdout.read())
    most = most_mib(server)
    print(f"{role} {' '.join(options)}: {most} MiB, {answered} answered, waits up to {max(waits):.2f} s")
    assert answered
    assert most < PROMISED_MIB
