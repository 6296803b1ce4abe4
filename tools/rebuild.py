"""The command `rebuild`: the metadata back from the data servers alone, as it was at the newest stored copy.

Looks at every data server, running or stopped, chooses the newest copy that is whole and whose manifest at
least Qr servers agree about, puts it back as `restore` does, and says what is missing. It deletes nothing
anywhere. Exit status: 0 rebuilt and all blocks are there, 1 some are not or it did not work, 2 it cannot.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from mediator import manifest
from mediator.manifest import Manifest
from metaserver import copies, offline
from metaserver.blocks import session_of
from metaserver.fence import NUMBER_LIMIT
from metaserver.restore import Restored, restore
from tools.backup import in_words, tell_findings, when
from tools.holders import Holder, look
from tools.locate import add_state_option, find_cluster, typed
from tools.output import add_json_option, bytes_text, print_json, print_paths
from tools.processes import ClusterError
from tools.progress import watching
from tools.restore import done_as_data, refuse_running, tell_what_next
from tools.whole import Watch
from wire.config import ClusterConfig, ConfigError
from wire.digest import BLOCK_BYTES
from wire.directories import make_directory
from wire.messages import BlockRecord

FETCHED_NAME = "meta.sqlite.copy-fetched"
"""Where a copy is gathered; the metadata server removes what is left of it."""


class Candidate(NamedTuple):
    """A stored copy: its number, its manifest, and how many servers agree about that."""

    copy: int
    manifest: Manifest
    agreeing: int


class Missing(NamedTuple):
    """What is not as it was: blocks that no server has, the files they are of, and blocks of no file."""

    lost_blocks: int
    lost_paths: list[bytes]
    newer_blocks: int
    newer_bytes: int


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add rebuild."""
    parser = subparsers.add_parser(
        "rebuild", help="bring the metadata of a stopped cluster back from its data servers alone"
    )
    parser.add_argument(
        "--replace", action="store_true", help="even if there is a database: it is moved aside"
    )
    parser.add_argument(
        "--fewer",
        action="store_true",
        help="take a copy that fewer than Qr data servers know, if there is no other",
    )
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Rebuild, and say what is missing."""
    cluster = find_cluster(arguments.state)
    with cluster.lock():
        return _rebuild(cluster.config, arguments)


def _rebuild(config: ClusterConfig, arguments: argparse.Namespace) -> int:
    refuse_running(config, arguments.state)
    database = config.metaserver_directory / "meta.sqlite"
    if database.exists() and not arguments.replace:
        raise ConfigError(
            f"{database} is there; if `{typed('fsck --repair', arguments.state)}` cannot mend it: "
            f"{typed('rebuild --replace', arguments.state)}"
        )
    with ExitStack() as stack:
        watch = stack.enter_context(watching("rebuild:"))
        holders, unseen = look(config, stack, watch)
        target = config.metaserver_directory / FETCHED_NAME
        stack.callback(target.unlink, missing_ok=True)
        try:
            make_directory(target.parent)
            enough = 1 if arguments.fewer else config.quorum.read
            chosen, found = choose(config.cluster, holders, enough, target, watch)
        except ClusterError as error:
            advice = "put a backup back with `quorumfs restore FILE`"
            if not arguments.fewer:
                again = "rebuild --replace --fewer" if arguments.replace else "rebuild --fewer"
                advice += f", or take a copy that fewer data servers know, if any, with `quorumfs {again}`"
            raise ClusterError(f"{error}; {advice}") from None
        except OSError as error:
            raise ClusterError(f"{target.parent}: cannot be written: {error.strerror}") from None
        done = restore(target, config.metaserver_directory, config.cluster, last_session(holders))
    missing = _look_for_missing(config, holders, done)
    if arguments.json:
        print_json(_plain(chosen, done, missing, unseen))
    else:
        print(f"rebuilt from copy {chosen.copy}, on {chosen.agreeing} data servers: {in_words(found)}")
        tell_findings(found, arguments.state)
        _tell_missing(done, missing, unseen)
        tell_what_next(done, arguments.state)
    return int(bool(missing.lost_blocks))


def candidates(cluster: str, holders: Sequence[Holder], enough: int) -> Iterator[Candidate]:
    """Yield the stored copies, newest first, whose manifest at least `enough` servers agree about.

    A server's own copy of a manifest counts only if its bytes match its digest.
    """
    blocks = {block for holder in holders for block in holder.records if manifest.is_reserved(block)}
    for block in sorted(filter(manifest.is_manifest, blocks), reverse=True):
        said = [holder.read(holder.records[block]) for holder in holders if block in holder.records]
        votes = Counter(data for data in said if data is not None)
        for data, count in votes.most_common(1):
            try:
                told = manifest.decode(data)
            except ValueError:
                continue
            if count >= enough and told.cluster == cluster:
                yield Candidate(manifest.copy_of(block), told, count)


def choose(
    cluster: str, holders: Sequence[Holder], enough: int, target: Path, watch: Watch
) -> tuple[Candidate, copies.Copy]:
    """Write the newest copy that is whole to `target`; return it.

    Raises:
        ClusterError: there is none. OSError: `target` cannot be written.
    """
    refused = []
    for candidate in candidates(cluster, holders, enough):
        try:
            gather(candidate, holders, target, watch)
            return candidate, copies.inspect(target, cluster, watch)
        except (ClusterError, ConfigError) as error:
            refused.append(f"that of {when(candidate.manifest.copied_ns)}: {error}")
    why = "; ".join(refused) or f"none is known to {enough} of the {len(holders)} that could be looked at"
    raise ClusterError(f"no copy of the metadata on the data servers is whole ({why})")


def gather(candidate: Candidate, holders: Sequence[Holder], target: Path, watch: Watch) -> None:
    """Put a copy's parts together, each from any server that has it right. Raises ClusterError, OSError."""
    told = candidate.manifest
    with target.open("wb") as file:
        for index, digest in enumerate(told.digests):
            watch("fetching", index, len(told.digests))
            length = min(BLOCK_BYTES, told.size - index * BLOCK_BYTES)
            record = BlockRecord(manifest.block_of(candidate.copy, index + 1), length, digest)
            data = next((data for holder in holders if (data := holder.read(record)) is not None), None)
            if data is None:
                raise ClusterError(f"no server has its part {index + 1} of {len(told.digests)}")
            file.write(data)
    copies.sync_file(target)


def last_session(holders: Sequence[Holder]) -> int:
    """Return the highest session that wrote a block which some server has."""
    sessions = {session_of(block) for holder in holders for block in holder.records}
    return max((session for session in sessions if session < NUMBER_LIMIT), default=0)


def _look_for_missing(config: ClusterConfig, holders: Sequence[Holder], done: Restored) -> Missing:
    held = {block: record.length for holder in holders for block, record in holder.records.items()}
    with offline.opened(config.metaserver_directory, config.cluster) as connection:
        committed = {record.block for record in offline.committed_blocks(connection)}
        lost = sorted(committed - held.keys())
        paths = offline.paths_of_blocks(connection, lost)
    newer = [block for block in held.keys() - committed if done.fence.covers(session_of(block))]
    return Missing(len(lost), paths, len(newer), sum(held[block] for block in newer))


def _plain(chosen: Candidate, done: Restored, missing: Missing, unseen: dict[int, str]) -> dict[str, Any]:
    return {
        "copy": chosen.copy,
        "copied_ns": done.copied_ns,
        "agreeing_servers": chosen.agreeing,
        "unseen_servers": {str(number): why for number, why in unseen.items()},
        **missing._asdict(),
        **done_as_data(done),
    }


def _tell_missing(done: Restored, missing: Missing, unseen: dict[int, str]) -> None:
    print(f"missing: every change after {when(done.copied_ns)}")
    if missing.newer_blocks:
        print(
            f"missing: names for {missing.newer_blocks} blocks ({bytes_text(missing.newer_bytes)}) "
            "that are newer than the copy, or were never committed"
        )
    if missing.lost_blocks:
        print(f"missing: {missing.lost_blocks} blocks that no server has; these files cannot be read whole:")
        print_paths(missing.lost_paths)
    for number, why in unseen.items():
        print(f"data-{number} could not be looked at: {why}")
