"""No server takes more than 200 MiB, whatever its peers send it; meanwhile it answers others."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.quorum_client import connected
from tests.conftest import ClusterFactory
from tests.support import ROOT
from wire.blocking import BlockingClient
from wire.methods import CommonMethods

PROMISED_MIB = 200
SECONDS = 10.0
ANSWER_SECONDS = 20.0


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
    flood(make_cluster, role, [kind, "--put", put, "--peers", str(peers)])


@pytest.mark.long
@pytest.mark.parametrize("peers", [250, 900])
def test_syncs(make_cluster: ClusterFactory, peers: int) -> None:
    """54,703 of them in flight took 251 to 377 MiB of the metadata server."""
    flood(make_cluster, "metaserver", ["syncs", "--peers", str(peers)])


def flood(make_cluster: ClusterFactory, role: str, options: list[str]) -> None:
    """Flood one server of a cluster, and call it all the time."""
    with connected(make_cluster()) as client:
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
        assert client.read(client.make("after", b"it serves")[0]) == b"it serves"
