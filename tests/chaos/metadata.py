"""Damage to a killed metadata server's own files whose right outcome is known, and which must lose nothing.

*beside*: a file that the database can do without; the server must start. *log*: a frame that was durable; the
start must be refused, and all is there once the bytes are put back. *restore*: the database itself, right
after a copy of it was made; the operator puts the copy back. What was told is always nothing, or what did not
go as it must. One thread.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

from metaserver import log_mark, sums
from metaserver.frames import FRAME_HEADER_BYTES, LOG_HEADER_BYTES, PAGE_BYTES, decode_log_header
from tests.chaos import verify
from tests.support import wait_until
from tools.cluster import LocalCluster
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.errors import QuorumfsError
from wire.methods import CommonMethods

DATABASE = "meta.sqlite"
LOG = DATABASE + "-wal"
BESIDE = (sums.SUFFIX, log_mark.SUFFIX, "-shm")
FRAME = FRAME_HEADER_BYTES + PAGE_BYTES
MOST_PAGES = 20
GRANT_SECONDS = 10.0


def spoil(path: Path, dice: random.Random) -> str:
    """Remove a file, empty it, cut it off, or write over up to twenty of its pages; return what was done."""
    how = dice.choice(("removed", "emptied", "cut off", "flipped", "zeros"))
    if not path.exists() or not path.stat().st_size:
        return "not there"
    if how == "removed":
        path.unlink()
        return how
    data = bytearray(path.read_bytes())
    if how in ("emptied", "cut off"):
        del data[0 if how == "emptied" else dice.randrange(len(data)) :]
    else:
        for _ in range(dice.randint(1, MOST_PAGES)):
            place = dice.randrange(len(data))
            if how == "flipped":
                data[place] ^= 1 << dice.randrange(8)
            else:
                end = min(len(data), place + PAGE_BYTES)
                data[place:end] = bytes(end - place)
    path.write_bytes(data)
    return how


def durable_frames(directory: Path) -> int:
    """Return how many frames of a killed server's log are needed and known to be durable."""
    marked = log_mark._marked(directory / DATABASE)
    log = directory / LOG
    header = decode_log_header(log.read_bytes()[:LOG_HEADER_BYTES]) if log.exists() else None
    if marked is None or header is None or header.salts != marked.salts:
        return 0
    return marked.frames if marked.need is log_mark.Need.NEEDED else 0


class MetadataDamage:
    """Stages one such event on a cluster; `begin` kills the metadata server, which is left to be started."""

    def __init__(self, cluster: LocalCluster, seed: float, backup: Path) -> None:
        self._cluster = cluster
        self._directory = cluster.config.metaserver_directory
        self._dice = random.Random(seed)
        self._backup = backup

    def beside(self) -> tuple[str, list[str]]:
        """Damage a file that is not needed."""
        self._cluster.kill("metaserver")
        suffix = self._dice.choice(BESIDE)
        return f"{suffix} {spoil(self._directory / (DATABASE + suffix), self._dice)}", []

    def log(self) -> tuple[str, list[str]]:
        """Damage a durable frame, have the start refused, and put the bytes back."""
        self._cluster.kill("metaserver")
        count = durable_frames(self._directory)
        if not count:
            return "no frame is needed", []
        frame, path = self._dice.randrange(count), self._directory / LOG
        place = LOG_HEADER_BYTES + frame * FRAME + self._dice.randrange(FRAME)
        with path.open("r+b", buffering=0) as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << self._dice.randrange(8)]))
            told = f"frame {frame} of {count}"
            if not self._is_refused():
                return told, [f"the metadata server started with {told} of its log damaged"]
            file.seek(place)
            file.write(bytes([byte]))
        return told, []

    def restore(self) -> tuple[str, list[str]]:
        """Copy the database, damage it, see what a start says, and put the copy back.

        The mediator is down from before the copy until after it is back, so that nothing is acknowledged
        that the copy has not; nor by a mount that is alone, whose grant ends before.
        """
        self._cluster.kill("mediator")
        self._await_end_of_grant()
        self._cluster.kill("metaserver")
        found = self._run("backup", str(self._backup))
        how = spoil(self._directory / DATABASE, self._dice)
        refused = self._is_refused()
        if how in ("removed", "emptied") and not refused:
            found.append(f"the metadata server started with its database {how}")
        found += self._run("restore", str(self._backup)) + self._run("restore", "--release")
        self._backup.unlink(missing_ok=True)
        return f"{how}, {'refused' if refused else 'started'}", found

    def _await_end_of_grant(self) -> None:
        """Wait until no mount may tell changes without a call, and the metadata server has taken them in.

        A copy of the database of a killed server is without what waits in a ring.
        """
        client = BlockingClient([self._cluster.address("metaserver")])

        def is_over() -> bool:
            with suppress(QuorumfsError):
                return not client.call(GRANT_SECONDS, CommonMethods.status)["alone_seconds_left"]
            return False

        try:
            wait_until(is_over, 2 * GRANT_SECONDS, "no mount is alone")
        finally:
            client.close()

    def _is_refused(self) -> bool:
        """Try to start the metadata server; it is down afterwards.

        What it says of the damage is right, and so is kept out of its log: but for a traceback.
        """
        log = self._cluster.log_file("metaserver")
        size = log.stat().st_size
        try:
            self._cluster.start("metaserver")
        except (ClusterError, ConfigError):
            return True
        else:
            self._cluster.kill("metaserver")
            return False
        finally:
            if b"Traceback" not in log.read_bytes()[size:]:
                os.truncate(log, size)

    def _run(self, *words: str) -> list[str]:
        exit_status, answer = verify.command(self._cluster, *words)
        return [] if exit_status == 0 else [f"{' '.join(words)}: {exit_status}, {answer}"]
