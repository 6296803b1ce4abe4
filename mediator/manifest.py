"""How a copy of the metadata lies on the data servers: its blocks' ids, its manifest, which are complete.

A copy is blocks of session 0, which no client has: part 1 on are the file in pieces of BLOCK_BYTES, and part
0, put last, is the manifest, which says what the parts must be. Pure; safe in any thread.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wire.digest import BLOCK_BYTES, DIGEST_BYTES
from wire.messages import BLOCK_ID_BYTES, BlockRecord

RESERVED = bytes(8)
"""What the ids of these blocks begin with: the number of a session that is never given."""
PART_BITS = 20
MANIFEST_FORMAT = 1
COPIES_KEPT = 2


class Manifest(NamedTuple):
    """What a copy is: whose, of which moment, how long, and the digests of its parts in order."""

    cluster: str
    database: str
    copied_ns: int
    size: int
    digests: list[bytes]


def is_reserved(block: bytes) -> bool:
    """Tell whether a block is of a copy of the metadata."""
    return block.startswith(RESERVED)


def block_of(copy: int, part: int) -> bytes:
    """Return a block's id. `copy` is when it was begun, in milliseconds, or a higher number."""
    return (copy << PART_BITS | part).to_bytes(BLOCK_ID_BYTES, "big")


def copy_of(block: bytes) -> int:
    """Return which copy a reserved block is of."""
    return int.from_bytes(block, "big") >> PART_BITS


def is_manifest(block: bytes) -> bool:
    """Tell whether a reserved block is a manifest."""
    return not int.from_bytes(block, "big") & (1 << PART_BITS) - 1


def part_count(size: int) -> int:
    """Return how many parts a copy of so many bytes has."""
    return -(-size // BLOCK_BYTES)


def encode(manifest: Manifest) -> bytes:
    """Return a manifest's block. It may be too long for one: about 15 GiB of metadata are the most."""
    text = json.dumps(
        {
            "format": MANIFEST_FORMAT,
            "cluster": manifest.cluster,
            "database": manifest.database,
            "copied_ns": manifest.copied_ns,
            "size": manifest.size,
            "digests": [digest.hex() for digest in manifest.digests],
        }
    )
    return text.encode()


def decode(data: bytes) -> Manifest:
    """Return what a manifest's block says. Raises ValueError if it is none of this format."""
    try:
        said = json.loads(data)
        if said["format"] != MANIFEST_FORMAT:
            raise ValueError(f"a manifest of format {said['format']}")
        digests = [bytes.fromhex(digest) for digest in said["digests"]]
        name, database = str(said["cluster"]), str(said["database"])
        found = Manifest(name, database, int(said["copied_ns"]), int(said["size"]), digests)
    except (KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no manifest: {error}") from None
    if len(digests) != part_count(found.size) or any(len(digest) != DIGEST_BYTES for digest in digests):
        raise ValueError("a manifest that contradicts itself")
    return found


def complete(held: Iterable[Iterable[BlockRecord]], enough: int) -> list[int]:
    """Return the copies whose manifest at least `enough` servers hold, newest first."""
    counts = Counter(
        copy for records in held for copy in {copy_of(r.block) for r in records if is_manifest(r.block)}
    )
    return sorted((copy for copy, count in counts.items() if count >= enough), reverse=True)


def most_common(block: bytes, held: Iterable[Iterable[BlockRecord]]) -> BlockRecord:
    """Return what most servers have under a block's id. At least one must have it."""
    ((record, _),) = Counter(r for records in held for r in records if r.block == block).most_common(1)
    return record


def parts_of(copy: int, manifest: Manifest) -> list[BlockRecord]:
    """Return what a copy's parts must be, by its manifest."""
    return [
        BlockRecord(block_of(copy, part + 1), min(BLOCK_BYTES, manifest.size - part * BLOCK_BYTES), digest)
        for part, digest in enumerate(manifest.digests)
    ]


def lacks_parts(copy: int, data: bytes | None, held: Iterable[Iterable[BlockRecord]]) -> bool:
    """Tell whether no server holds some part that a copy's manifest names; not if that cannot be read now."""
    if data is None:
        return False
    there = {record for records in held for record in records}
    try:
        return any(part not in there for part in parts_of(copy, decode(data)))
    except ValueError:
        return True


def superseded(kept: Sequence[int], records: Iterable[BlockRecord]) -> list[bytes]:
    """Return the blocks that a server needs no more, given the complete copies, newest first."""
    if len(kept) < COPIES_KEPT:
        return []
    newest, wanted = kept[0], kept[:COPIES_KEPT]
    return [r.block for r in records if copy_of(r.block) < newest and copy_of(r.block) not in wanted]


def lacking(
    kept: Sequence[int], held: Mapping[int, Sequence[BlockRecord]]
) -> dict[int, list[tuple[BlockRecord, list[int]]]]:
    """Return what each server lacks of the complete copies: the record that most have, and who has it."""
    votes: dict[bytes, Counter[BlockRecord]] = {}
    for records in held.values():
        for record in records:
            if copy_of(record.block) in kept[:COPIES_KEPT]:
                votes.setdefault(record.block, Counter())[record] += 1
    found: dict[int, list[tuple[BlockRecord, list[int]]]] = {}
    there = {number: {record.block for record in records} for number, records in held.items()}
    exactly = {number: set(records) for number, records in held.items()}
    for block, counts in sorted(votes.items(), reverse=True):
        ((record, _),) = counts.most_common(1)
        holders = [number for number, records in exactly.items() if record in records]
        for number, blocks in there.items():
            if block not in blocks:
                found.setdefault(number, []).append((record, holders))
    return found


def is_due(newest: int, now_ms: int, period_seconds: float, *, changed: bool) -> bool:
    """Tell whether a copy is to be made. `newest` is the newest complete copy, 0 if there is none.

    A copy from the future, from when the clock was wrong, is as good as an old one.
    """
    return not newest or (changed and abs(now_ms - newest) >= period_seconds * 1000)
