"""Copies that lost a vote, the ledger of repairs and df, with real processes and the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.quorum_client import connected
from tests.conftest import ClusterFactory
from tests.support import ROOT, run_command

DATA = b"four score and seven years" * 100


def test_quarantine_ledger_and_df(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3)

    def say(*words: str, status: int = 0) -> Any:
        told = run_command(tmp_path, *words, "--json", "--state", str(cluster.directory))
        assert told.returncode == status, told.stderr
        return json.loads(told.stdout) if status == 0 else told.stderr

    with connected(cluster) as client:
        ino, (record,) = client.make("speech", DATA)
        for number, kind in ((2, "flip"), (3, "zeros")):
            client.corrupt(record, number, kind=kind)
            say("scrub", "--now")
        client.await_all_good(ino)
        copies = {copy["server"]: copy for copy in say("quarantine", "list")}
        assert sorted(copies) == [2, 3]
        assert all(copy["block"] == record.block.hex() for copy in copies.values())
        name = copies[2]["name"]
        shown = say("quarantine", "show", name)
        assert shown["files"] == ["/speech"]
        assert "lost the vote" in shown["note"]
        # What does not fit is not saved in part.
        words = ["quarantine", "restore", name, "--to", "saved", "--state", str(cluster.directory)]
        limited = ["prlimit", "--fsize=100", sys.executable, "-m", "tools.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        full = subprocess.run(limited, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert (full.returncode, (tmp_path / "saved").exists()) == (2, False), full
        # The bytes as they were are saved; they are never put back, as they are not the right ones.
        assert say("quarantine", "restore", name, "--to", str(tmp_path / "saved"))["bytes"] == len(DATA)
        saved = (tmp_path / "saved").read_bytes()
        assert sum((a ^ b).bit_count() for a, b in zip(saved, DATA, strict=True)) == 1
        assert "not those that were committed" in say("quarantine", "restore", name, status=1)
        assert client.verdicts(ino) == [{"1": "good", "2": "good", "3": "good"}]
        entries = say("ledger")
        assert [(entry["server"], entry["verdict"]) for entry in entries] == [(3, "corrupt"), (2, "corrupt")]
        for entry in entries:
            assert entry["files"] == ["/speech"]
            assert entry["digest_after"] == record.digest.hex()
            assert entry["digest_before"] not in ("", entry["digest_after"])
        # An empty word, as of a variable that is not set, names no copy, though there is one only.
        assert "name the copy" in say("quarantine", "purge", "--server", "2", "", status=2)
        assert len(say("quarantine", "list")) == 2
        # The ledger outlives the mediator, which keeps nothing.
        cluster.kill("mediator")
        cluster.start()
        client.await_states("up")
        assert say("ledger") == entries
        # A server that is down hides no other's copies.
        cluster.kill("data-3")
        listed = run_command(tmp_path, "quarantine", "list", "--json", "--state", str(cluster.directory))
        assert (listed.returncode, json.loads(listed.stdout)) == (1, [copies[2]])
        assert "data-3 does not answer" in listed.stderr
        assert say("quarantine", "show", name)["server"] == 2
        assert "data-3" in say("quarantine", "show", copies[3]["name"], status=2)
        cluster.start()
        client.await_states("up")
        room = {row["server"]: row for row in say("df")}
        assert room[1]["live_bytes"] == len(DATA)
        assert room[1]["dead_bytes"] == room[1]["quarantined_bytes"] == 0
        assert room[2]["quarantined_bytes"] == 4096 + len(DATA)
        assert say("quarantine", "purge", name) == {"destroyed": 1}
        assert say("quarantine", "purge", "--all") == {"destroyed": 1}
        assert say("quarantine", "list") == []
        assert client.quarantined() == [0, 0, 0]


@pytest.mark.damages
def test_what_was_corrupted_is_told_though_one_server_was_down(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3)
    with connected(cluster) as client:
        ino, _ = client.make("speech", DATA)
        cluster.kill("data-2")
        words = ["fault", "corrupt", "/speech", "--servers", "1-3", "--json"]
        done = run_command(tmp_path, *words, "--state", str(cluster.directory))
        assert done.returncode == 1
        assert [item["server"] for item in json.loads(done.stdout)] == [1, 3]
        assert "data-2 went undamaged" in done.stderr
        assert client.verdicts(ino) == [{"1": "corrupt", "2": "down", "3": "corrupt"}]
