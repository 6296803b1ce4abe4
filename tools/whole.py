"""Whether a cluster is whole: the metadata's invariants, and the data servers' blocks held against them.

Two ways to look, with the same report: at a stopped cluster's directories, and at running servers. What
is being changed meanwhile is looked at twice before it is reported. It must not mend anything. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dataserver.offline import Listing, read
from mediator.inventories import compare
from mediator.refill import PAGE
from metaserver import check, offline
from metaserver.check import CHECKS, DATABASE, FINDINGS_MAX, Finding
from tools.locate import typed
from wire.blocking import BlockingClient
from wire.config import ClusterConfig, ConfigError, DataServerConfig
from wire.errors import Busy, DeadlineExceeded, QuorumfsError, Unavailable
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods

CALL_SECONDS = 30.0
FIRST_CALL_SECONDS = 3.0
BUSY_SECONDS = 120.0
FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.005, 0.2
SETTLE_SECONDS = 2.5
"""The metadata server removes what nobody has any more within this time."""

LOST = "block-lost"
LACKING = "block-replicas"
DIFFERING = "replica-witness"
UNSEEN = "data-servers"
RULES = {
    DATABASE.name: DATABASE.rule,
    **{each.name: each.rule for each in CHECKS},
    UNSEEN: "every data server can be looked at",
    LOST: "a committed block is held by some data server",
    LACKING: "a committed block is held by every data server",
    DIFFERING: "a data server's record of a block has the witness's length and digest",
}
"""All checks by name, in the order in which they are reported."""

Watch = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and how much there is (0: not known)."""


def unwatched(doing: str, done: int, total: int) -> None:
    """Tell nobody."""


class Replicas(NamedTuple):
    """How one data server's blocks differ from the committed ones."""

    server: int
    lacking: list[BlockRecord]
    differing: list[BlockRecord]


@dataclass
class Report:
    """What was found. `online` tells how it was looked at."""

    online: bool
    findings: list[Finding] = field(default_factory=list)
    blocks: int = 0
    """How many committed blocks were looked for on the data servers."""
    lost_paths: list[bytes] = field(default_factory=list)
    """Of each file with a name that refers to a block which no server has."""

    def count(self, name: str) -> int:
        """Return how many findings a check has."""
        return sum(finding.check == name for finding in self.findings)

    def lost_blocks(self) -> list[bytes]:
        """Return the committed blocks that no server has."""
        return [bytes.fromhex(finding.row["block"]) for finding in self.findings if finding.check == LOST]


def merge(
    committed: Callable[[bytes], Sequence[BlockRecord]], held: Callable[[bytes], Sequence[BlockRecord]]
) -> Iterator[tuple[int, list[BlockRecord], list[BlockRecord]]]:
    """Compare two listings page by page; yield how many committed blocks a step saw, and what differs.

    Args:
        committed: returns a page of the metadata's blocks after an id, empty at the end.
        held: the same of a data server.
    """
    cursor = b""
    while True:
        page = committed(cursor)
        step = compare(page, held(cursor))
        if step.cursor is None:
            return
        yield sum(record.block <= step.cursor for record in page), step.lacking, step.differing
        cursor = step.cursor


def judge(servers: int, seen: Sequence[Replicas]) -> list[Finding]:
    """Say what the comparisons mean.

    Args:
        servers: N, how many data servers there are.
        seen: the comparison of each that could be looked at.
    """
    lacking: dict[bytes, list[int]] = {}
    found: list[Finding] = []
    for server, lacks, differs in seen:
        for record in lacks:
            lacking.setdefault(record.block, []).append(server)
        for record in differs:
            found.append(Finding(DIFFERING, {"block": record.block.hex(), "server": server}))
    for block, numbers in sorted(lacking.items()):
        name = LOST if len(numbers) == servers else LACKING
        found.append(Finding(name, {"block": block.hex(), "not_on": numbers}))
    return found


# A stopped cluster


def check_stopped(config: ClusterConfig, watch: Watch = unwatched) -> Report:
    """Check a cluster whose metadata server does not run, from its directories.

    Raises:
        ConfigError: the metadata server runs, or its directory cannot be used.
    """
    report = Report(online=False)
    with offline.opened(config.metaserver_directory, config.cluster) as connection:
        report.findings += check.check(connection, watch=watch)
        committed = offline.committed_blocks(connection)
    report.blocks = len(committed)
    seen = []
    for place in config.data_servers:
        watch(f"data-{place.number}", 0, 0)
        try:
            listing = read_stopped(place, config.cluster)
            held = [BlockRecord(r.block, r.length, r.digest) for r in listing.replicas]
        except ConfigError as error:
            if not place.directory.exists() or not any(place.directory.iterdir()):
                held = []  # it was never started, or begins blank
            else:
                report.findings.append(Finding(UNSEEN, {"server": place.number, "error": str(error)}))
                continue
        difference = compare(committed, held)
        seen.append(Replicas(place.number, difference.lacking, difference.differing))
    report.findings += judge(config.quorum.servers, seen)
    if lost := report.lost_blocks():
        with offline.opened(config.metaserver_directory, config.cluster) as connection:
            report.lost_paths = offline.paths_of_blocks(connection, lost)
    return report


def read_stopped(place: DataServerConfig, cluster: str) -> Listing:
    """Read the directory of a data server that is stopped. Raises ConfigError, also if it is another's."""
    listing = read(place.directory, verify=False)
    if (listing.cluster, listing.number) != (cluster, place.number):
        raise ConfigError(f"{place.directory} belongs to data server {listing.number} of {listing.cluster}")
    return listing


# A running cluster


def is_running(config: ClusterConfig, state: Path | None) -> bool:
    """Tell whether the metadata server answers; `state` is the --state that commands need to find it.

    One of another cluster at its address is not it.

    Raises:
        ConfigError: something is there, but it does not answer.
    """
    with closing(_client(config, config.metaserver_listen)) as client:
        try:
            return client.call_once(FIRST_CALL_SECONDS, CommonMethods.identity).cluster == config.cluster
        except Unavailable:
            return False
        except DeadlineExceeded:
            raise ConfigError(
                f"the metadata server at {config.metaserver_listen} does not answer; "
                f"let it go on with `{typed('fault resume metaserver', state)}`, or stop the cluster with "
                f"`{typed('down', state)}`"
            ) from None


def check_running(config: ClusterConfig, watch: Watch = unwatched) -> Report:
    """Check a running cluster by asking its servers.

    Raises:
        QuorumfsError: the metadata server does not answer (any more), or cannot read its database.
    """
    report = Report(online=True)
    with closing(_client(config, config.metaserver_listen)) as meta:
        report.findings += _metadata_findings(meta, watch)
        report.blocks = int(meta.call(CALL_SECONDS, BookkeepingMethods.counts)["blocks"])
        seen = []
        for place in config.data_servers:
            with closing(_client(config, place.listen)) as data:
                try:
                    require_data_server(data, config, place)
                    seen.append(_compare_running(meta, data, place.number, report.blocks, watch))
                except (QuorumfsError, ConfigError) as error:
                    report.findings.append(Finding(UNSEEN, {"server": place.number, "error": str(error)}))
        report.findings += judge(config.quorum.servers, seen)
        report.lost_paths = _paths_of_blocks(meta, report.lost_blocks())
    return report


def require_data_server(client: BlockingClient, config: ClusterConfig, place: DataServerConfig) -> None:
    """Return if this very data server answers.

    Raises:
        QuorumfsError: nobody does. ConfigError: it is another server, whose blocks say nothing here.
    """
    found = client.call_once(FIRST_CALL_SECONDS, CommonMethods.identity)
    if (found.kind, found.cluster, found.number) != ("dataserver", config.cluster, place.number):
        raise ConfigError(
            f"{place.listen} is that of {found.kind} {found.number} of cluster {found.cluster}; stop that, "
            "or change the address"
        )


def _paths_of_blocks(meta: BlockingClient, blocks: Sequence[bytes]) -> list[bytes]:
    inodes: set[int] = set()
    for block in blocks:
        inodes.update(meta.call(CALL_SECONDS, BookkeepingMethods.files_of_block, block))
    paths = [meta.call(CALL_SECONDS, BookkeepingMethods.paths_of, ino, 1) for ino in inodes]
    return sorted(path for found in paths for path in found)


def _client(config: ClusterConfig, address: str) -> BlockingClient:
    return BlockingClient([address], config.rpc, connect_seconds=config.deadlines.connect_seconds)


def _metadata_findings(meta: BlockingClient, watch: Watch) -> list[Finding]:
    findings = _run_check(meta, watch)
    if not any(finding.check == "orphans" for finding in findings):
        return findings
    # The metadata server may have been about to remove them.
    time.sleep(SETTLE_SECONDS)
    still = {finding.row["ino"] for finding in _run_check(meta, watch) if finding.check == "orphans"}
    return [f for f in findings if f.check != "orphans" or f.row["ino"] in still]


def _run_check(meta: BlockingClient, watch: Watch) -> list[Finding]:
    number = _begin_check(meta)
    pause_seconds = FIRST_LOOK_SECONDS
    while (said := meta.call(CALL_SECONDS, BookkeepingMethods.check_progress, number))["state"] == "running":
        watch(said["checking"], said["done"], said["total"])
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, LOOK_SECONDS)
    if said["state"] == "failed":
        return [Finding(DATABASE.name, {"message": said["error"]})]
    return [Finding(found["check"], found["row"]) for found in said["findings"]]


def _begin_check(meta: BlockingClient) -> int:
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return meta.call(CALL_SECONDS, BookkeepingMethods.begin_check)
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(LOOK_SECONDS)


def _compare_running(
    meta: BlockingClient, data: BlockingClient, number: int, total: int, watch: Watch
) -> Replicas:
    lacking: list[BlockRecord] = []
    differing: list[BlockRecord] = []
    done = 0
    watch(f"data-{number}", 0, total)
    steps = merge(
        lambda after: meta.call(CALL_SECONDS, BookkeepingMethods.blocks, after, PAGE),
        lambda after: data.call(CALL_SECONDS, DataMethods.inventory, after, PAGE),
    )
    for count, lacks, differs in steps:
        lacking += lacks
        differing += differs
        done += count
        watch(f"data-{number}", done, max(done, total))
    return Replicas(
        number,
        list(_still(meta, data, lacking, there=False)),
        list(_still(meta, data, differing, there=True)),
    )


def _still(
    meta: BlockingClient, data: BlockingClient, doubtful: Iterable[BlockRecord], *, there: bool
) -> Iterator[BlockRecord]:
    """Return those that are still committed and still lacking (or, with `there`, different)."""
    for record in doubtful:
        before = (int.from_bytes(record.block, "big") - 1).to_bytes(len(record.block), "big")
        held = data.call(CALL_SECONDS, DataMethods.inventory, before, 1)
        found = held[0] if held and held[0].block == record.block else None
        if found == record or (found is not None) != there:
            continue
        if meta.call(CALL_SECONDS, BookkeepingMethods.witnesses, [record.block]) == [record]:
            yield record


def cut(findings: Sequence[Finding]) -> list[Finding]:
    """Return at most FINDINGS_MAX findings of each check, to be shown."""
    shown: dict[str, int] = {}
    kept = []
    for finding in findings:
        shown[finding.check] = shown.get(finding.check, 0) + 1
        if shown[finding.check] <= FINDINGS_MAX:
            kept.append(finding)
    return kept
