"""A data server's directory looked at from outside: what is there, where, and whether it is whole.

Reads the segments only (never the index) and changes nothing, so it also serves when the index is missing
or damaged. Meant for a stopped server; beside a running one it shows a moment. One thread.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dataserver.block_rings import left_blocks
from dataserver.directory import read_identity
from dataserver.record import PAGE_BYTES, Header
from dataserver.recovery import is_whole, winner
from dataserver.scan import Blank, Cut, Damaged, Found, Unfinished, Unreadable, scan
from dataserver.segment import Segment, segment_paths
from wire.config import ConfigError
from wire.open_files import allow_open_files

ReplicaVerdict = Literal["unread", "good", "corrupt"]
LookedAt = Callable[[int], None]


class Replica(NamedTuple):
    """One block's record: its file, the offsets in it, and whether its bytes are what its header says."""

    block: bytes
    length: int
    digest: bytes
    path: Path
    header_offset: int
    payload_offset: int
    verdict: ReplicaVerdict


class Region(NamedTuple):
    """Bytes of a segment file that are no readable record."""

    path: Path
    offset: int
    length: int
    reason: str


@dataclass
class Listing:
    """What a directory holds: replicas in the order of their ids, and damage in the order of its place.

    `given` blocks more lie beside it in shared memory, for the server to take in.
    """

    cluster: str
    number: int
    given: int = 0
    replicas: list[Replica] = field(default_factory=list)
    damage: list[Region] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.damage and all(replica.verdict != "corrupt" for replica in self.replicas)


def segment_bytes(directory: Path) -> int:
    """Return how many bytes of segment files `read` will look at."""
    sizes = 0
    for path in segment_paths(directory / "segments").values():
        with suppress(FileNotFoundError):  # a running server is done with it
            sizes += path.stat().st_size
    return sizes


def read(directory: Path, *, verify: bool, looked_at: LookedAt = lambda size: None) -> Listing:
    """Read all segments of a directory.

    Args:
        directory: a data server's.
        verify: also compute the digest of each replica's bytes.
        looked_at: told about each run of bytes that was looked at, for a progress bar.

    Raises:
        ConfigError: it is no data server's directory, or of a newer format, or cannot be read.
    """
    identity = read_identity(directory)
    allow_open_files()  # there are two for each segment
    listing = Listing(str(identity["cluster"]), int(str(identity["number"])), left_blocks(directory))
    current: dict[bytes, tuple[Segment, Header]] = {}
    for segment in _open_segments(directory):
        for finding in scan(segment.fileno(), segment.number, PAGE_BYTES):
            if isinstance(finding, Found):
                _take(current, segment, finding.header)
            elif (region := _region(segment, finding)) is not None:
                listing.damage.append(region)
        if not verify:
            looked_at(segment.size())
    for _, (segment, header) in sorted(current.items()):
        listing.replicas.append(_replica(segment, header, verify=verify))
        if verify:
            looked_at(PAGE_BYTES + header.length)
    return listing


def locate(directory: Path, block: bytes) -> Replica | None:
    """Return where a block's record is, None if there is none that can be read. Raises ConfigError."""
    found = (replica for replica in read(directory, verify=False).replicas if replica.block == block)
    return next(found, None)


def _open_segments(directory: Path) -> Iterator[Segment]:
    place = directory / "segments"
    try:
        if place.exists() and not stat.S_ISDIR(place.stat().st_mode):
            raise ConfigError(f"{place} is no directory")
        for number, path in segment_paths(place).items():
            with suppress(FileNotFoundError):  # a running server is done with it
                yield Segment(path, number, writable=False)
    except OSError as error:
        raise ConfigError(f"{place}: cannot be read: {error.strerror}") from None


def _take(current: dict[bytes, tuple[Segment, Header]], segment: Segment, header: Header) -> None:
    newer = (segment, header)
    older = current.setdefault(header.block, newer)
    if older is not newer:
        current[header.block] = winner(older, newer, lambda record: is_whole(*record))


def _region(segment: Segment, finding: Blank | Cut | Damaged | Unfinished | Unreadable) -> Region | None:
    match finding:
        case Cut(header):
            length = segment.size() - header.offset
            return Region(segment.path, header.offset, length, f"block {header.block.hex()} is cut short")
        case Damaged(offset, length):
            return Region(segment.path, offset, length, "no record can be read here")
        case Unreadable(offset, length):
            return Region(segment.path, offset, length, "the disk cannot read all of this")
        case Unfinished() | Blank():
            return None


def _replica(segment: Segment, header: Header, *, verify: bool) -> Replica:
    verdict: ReplicaVerdict = "unread"
    if verify:
        verdict = "good" if is_whole(segment, header) else "corrupt"
    payload = header.offset + PAGE_BYTES
    return Replica(header.block, header.length, header.digest, segment.path, header.offset, payload, verdict)
