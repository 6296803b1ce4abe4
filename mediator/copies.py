"""Copies of the metadata, stored as blocks on the data servers: what `quorumfs rebuild` begins with.

Every period, if anything was changed, the metadata server copies its database, and the copy is put to a write
quorum as any block is, its manifest last. The two newest complete copies are kept on all servers that are up;
older ones are deleted. Scrubbing (mediator.scrub) asks here what their blocks must be. What is right and what
is due is decided in mediator.manifest. One event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mediator import manifest
from mediator.fanout import outcome_of, survive
from mediator.health import Health
from mediator.ledger import Ledger
from mediator.manifest import Manifest
from mediator.servers import Metadata, Server
from mediator.vote import Verdict
from mediator.write_path import WritePath
from wire.digest import BLOCK_BYTES, block_digest
from wire.errors import BlockDamaged, BlockMissing, Busy, InternalError, QuorumError, QuorumfsError
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods, DataMethods
from wire.quorum import Quorum

LOOK_SECONDS = 60.0
PROGRESS_SECONDS = 0.1
PAGE = 4096

log = logging.getLogger("mediator.copies")


class MetadataCopies:
    """Keeps the two newest copies of one cluster's metadata on its data servers."""

    def __init__(
        self,
        cluster: str,
        quorum: Quorum,
        health: Health,
        metadata: Metadata,
        write_path: WritePath,
        ledger: Ledger,
        period_seconds: float,
    ) -> None:
        self._ledger = ledger
        self._cluster = cluster
        self._quorum = quorum
        self._health = health
        self._metadata = metadata
        self._write_path = write_path
        self._period_seconds = period_seconds
        self._changes = ""
        self._lost: set[int] = set()
        """Copies that are not whole, and will not be: they stand for none."""
        self._newest = 0
        self._error = ""
        self._failures = 0
        self.blocks = 0
        """How many blocks of copies a data server held at most when it was last looked."""

    def status(self) -> dict[str, Any]:
        """Return when the newest complete copy was begun (0: none is known), and why none is newer."""
        return {
            "newest_ns": self._newest * 1_000_000,
            "blocks": self.blocks,
            "failures": self._failures,
            "error": self._error,
        }

    async def run_forever(self) -> None:
        """Look after the copies until cancelled; a period of 0 makes none."""
        while self._period_seconds:
            await asyncio.sleep(min(LOOK_SECONDS, self._period_seconds))
            await survive(self._try_once(), "copies of the metadata")

    async def _try_once(self) -> None:
        try:
            await self.run_once()
            self._error, self._failures = "", 0
        except QuorumfsError as error:
            if self._error != error.message:
                log.warning("no copy of the metadata was stored: %s", error.message)
            self._error = error.message
            self._failures += 1

    async def run_once(self) -> bool:
        """Have copies everywhere, and delete older ones; then make one if that is due. Tell whether it was.

        Raises:
            QuorumfsError: the metadata server does not answer or cannot copy, or there is no write quorum.
        """
        kept = await self._keep_up()
        counts = await self._metadata.ask(BookkeepingMethods.counts)
        now_ms = time.time_ns() // 1_000_000
        changed = counts["changes"] != self._changes
        due = manifest.is_due(kept[0] if kept else 0, now_ms, self._period_seconds, changed=changed)
        due = due and not counts["in_doubt"]  # a copy of an older database must not pass for the newest
        if due:
            if counts["found_older"]:
                raise InternalError(
                    "the metadata database is an older one, and the copies on the data servers may be newer: "
                    "stop the cluster and bring the newest back with `quorumfs rebuild --replace`, or let it "
                    "go with `quorumfs restore --release`"
                )
            held = await self._held()
            if counts["fenced"]:
                await self._require_same(counts["database"], held)
            await self._make(counts["database"])
            kept = await self._keep_up()
        self._newest = kept[0] if kept else 0
        return due

    async def _keep_up(self) -> list[int]:
        """Give servers what they lack, and delete what is superseded; return the complete copies."""
        held = await self._held()
        kept = await self._complete(held)
        if lost := await self._spread(kept, held):
            log.warning("%d copies of the metadata have parts that no server has whole any more", len(lost))
            self._lost |= lost
            self._changes = ""  # make up for it, if nothing is changed either
            kept = await self._complete(held)
        await self._delete_old(kept, held)
        return kept

    async def records(self, server: Server) -> list[BlockRecord]:
        """Return what the blocks of complete copies that a server has must be, as their manifests say."""
        held = await self._held()
        wanted = await self._witnesses(held)
        return [wanted[record.block] for record in held.get(server.number, ()) if record.block in wanted]

    async def count_on(self, server: Server) -> int:
        """Return how many blocks of copies, complete or not, a server has. Raises QuorumfsError."""
        return len(await self._held_by(server))

    async def _witnesses(self, held: Mapping[int, Sequence[BlockRecord]]) -> dict[bytes, BlockRecord]:
        """Return what each block of the complete copies must be; of a manifest, what most servers have."""
        found: dict[bytes, BlockRecord] = {}
        for copy in await self._complete(held):
            record = manifest.most_common(manifest.block_of(copy, 0), held.values())
            data = await self._read(record, self._health.up)
            with suppress(ValueError):
                if data is not None:
                    parts = manifest.parts_of(copy, manifest.decode(data))
                    found |= {each.block: each for each in (record, *parts)}
        return found

    async def mend(self, server: Server, record: BlockRecord, verdict: Verdict) -> bool:
        """Replace a copy's block that a scrub found not good on a server. Returns whether it is good now."""
        data = await self._read(record, [other for other in self._health.up if other is not server])
        if data is None:
            return False
        note = f"a copy of the metadata; scrubbed against {record.digest.hex()}"
        mended = await outcome_of(
            server.call(
                self._metadata.deadline_seconds, DataMethods.repair, record.block, record.digest, data, note
            )
        )
        if isinstance(mended, QuorumfsError):
            return False
        if mended != "good":
            self._ledger.note(record.block, server.number, verdict, "", record.digest.hex(), note)
        return True

    async def _complete(self, held: Mapping[int, Sequence[BlockRecord]]) -> list[int]:
        """Return the newest complete copies, newest first, but none that is known to lack a part.

        Those that Qr servers have, as `quorumfs rebuild` takes them: the parts were on a write quorum before
        the first manifest, and with Qw=N one blank server must not make all others' copies count for nothing.
        Of one that another mediator was making for too long the parts may have been deleted before it put the
        manifest: it must not stand for an older one that is whole.
        """
        found: list[int] = []
        for copy in manifest.complete(held.values(), self._quorum.read):
            if copy in self._lost:
                continue
            record = manifest.most_common(manifest.block_of(copy, 0), held.values())
            data = await self._read(record, self._health.up)
            if not manifest.lacks_parts(copy, data, held.values()):
                found.append(copy)
            if len(found) == manifest.COPIES_KEPT:
                break
        return found

    async def _require_same(self, database: str, held: Mapping[int, Sequence[BlockRecord]]) -> None:
        """See whose the newest copy is of which a manifest can be read.

        Raises:
            InternalError: another database's: it may be all that is left of that one.
            QuorumfsError: a server does not say now whether its manifest can be read.
        """
        for copy in manifest.complete(held.values(), 1):
            whose = await self._databases_of(copy, held)
            if database in whose:
                return
            if whose:
                raise InternalError(
                    "the data servers hold copies of another metadata database: stop the cluster and "
                    "bring that back with `quorumfs rebuild --replace`, or let it go with "
                    "`quorumfs restore --release`"
                )

    async def _databases_of(self, copy: int, held: Mapping[int, Sequence[BlockRecord]]) -> set[str]:
        """Return the names in those manifests of a copy that are not damaged."""
        found: set[str] = set()
        for server in self._health.up:
            for record in held.get(server.number, ()):
                if record.block != manifest.block_of(copy, 0):
                    continue
                deadline = self._metadata.deadline_seconds
                with suppress(BlockDamaged, BlockMissing, ValueError):
                    part = await server.call(deadline, DataMethods.get, record.block, 0, 0)
                    if block_digest(part.data) == record.digest:
                        found.add(manifest.decode(bytes(part.data)).database)
        return found

    async def _held(self) -> dict[int, list[BlockRecord]]:
        """Return the blocks of copies that each server has that is up."""
        servers = list(self._health.up)
        found = await asyncio.gather(*(outcome_of(self._held_by(server)) for server in servers))
        held = {
            server.number: records
            for server, records in zip(servers, found, strict=True)
            if not isinstance(records, QuorumfsError)
        }
        self.blocks = max(map(len, held.values()), default=0)
        return held

    async def _held_by(self, server: Server) -> list[BlockRecord]:
        found: list[BlockRecord] = []
        limit = 1  # most often there is nothing else to be seen
        while True:
            after = found[-1].block if found else b""
            page = await server.call(self._metadata.deadline_seconds, DataMethods.inventory, after, limit)
            records = [record for record in page if manifest.is_reserved(record.block)]
            if records and records[-1].block <= after:
                raise InternalError(f"the inventory of server {server.number} does not move on")
            found += records
            if len(records) < limit:
                return found
            limit = PAGE

    async def _make(self, database: str) -> None:
        """Have the metadata server make a copy, and put it: all of it, or nothing is left of it.

        Its number is drawn while no other mediator can make one: two of the same number would be one.
        """
        await self._write_path.check_writable()
        self._require_holders()
        try:
            number = await self._metadata.ask(BookkeepingMethods.begin_copy)
        except Busy:
            return
        copy = 0
        try:
            held = await self._held()
            newest = max((manifest.copy_of(r.block) for records in held.values() for r in records), default=0)
            copy = max(time.time_ns() // 1_000_000, newest + 1)
            await self._put_copy(copy, number, database)
        except QuorumfsError:
            held = await self._held()
            for server in self._health.up:
                parts = [r.block for r in held.get(server.number, ()) if manifest.copy_of(r.block) == copy]
                await outcome_of(server.call(self._metadata.deadline_seconds, DataMethods.delete, parts))
            raise
        finally:
            with suppress(QuorumfsError):
                await self._metadata.ask(BookkeepingMethods.drop_copy, number)

    def _require_holders(self) -> None:
        """Raise QuorumError if a copy would not be complete: each look would make one, none be deleted."""
        able = [server for server in self._health.up if not server.full]
        if len(able) < self._quorum.read:
            raise QuorumError(
                f"{len(able)} of {self._quorum.servers} data servers are up and have room, "
                f"Qr={self._quorum.read} must hold a copy before it counts"
            )

    async def _put_copy(self, copy: int, number: int, database: str) -> None:
        said = await self._until_copied(number)
        digests = await self._put_parts(copy, number, said["bytes"])
        told = manifest.encode(Manifest(self._cluster, database, said["copied_ns"], said["bytes"], digests))
        if len(told) > BLOCK_BYTES:
            raise InternalError(
                "the metadata is too large for a copy on the data servers; use `quorumfs backup`"
            )
        await self._put(manifest.block_of(copy, 0), told, durable=True)
        self._changes = said["changes"]
        log.info("a copy of the metadata was stored: %d bytes in %d blocks", said["bytes"], len(digests))

    async def _until_copied(self, number: int) -> dict[str, Any]:
        while True:
            said = await self._metadata.ask(BookkeepingMethods.copy_progress, number)
            if said["state"] == "done":
                return said
            if said["state"] != "running":
                raise InternalError(f"the metadata server could not copy its database: {said['error']}")
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _put_parts(self, copy: int, number: int, size: int) -> list[bytes]:
        """Put the parts, durable on a write quorum at the end; return their digests."""
        digests: list[bytes] = []
        blocks = [manifest.block_of(copy, part) for part in range(1, manifest.part_count(size) + 1)]
        for part, block in enumerate(blocks):
            data = await self._metadata.ask(
                BookkeepingMethods.read_copy, number, part * BLOCK_BYTES, BLOCK_BYTES
            )
            if len(data) != min(BLOCK_BYTES, size - part * BLOCK_BYTES):
                raise InternalError("the copy of the metadata ended early")
            digests.append(await self._put(block, data, durable=False))
        await self._write_path.sync_blocks(blocks)
        return digests

    async def _put(self, block: bytes, data: bytes, *, durable: bool) -> bytes:
        digest = block_digest(data)
        await self._write_path.put_block(block, digest, data, durable)
        return digest

    async def _spread(self, kept: Sequence[int], held: Mapping[int, Sequence[BlockRecord]]) -> set[int]:
        """Give servers what they lack of the complete copies, the newest copy and its parts first.

        Returns:
            Copies of which no server has some block right, though all were asked and have answered.
        """
        servers = {server.number: server for server in self._health.up}
        lost: set[int] = set()
        for number, wanted in manifest.lacking(kept, held).items():
            for record, holders in wanted:
                data = await self._read(record, [servers[k] for k in holders if k in servers])
                if data is None and len(held) == len(self._health.servers) and await self._is_lost(record):
                    lost.add(manifest.copy_of(record.block))
                if data is None or number not in servers:
                    continue
                put = servers[number].call(
                    self._metadata.deadline_seconds, DataMethods.put, record.block, record.digest, data, True
                )
                if isinstance(await outcome_of(put), QuorumfsError):
                    break
        return lost

    async def _is_lost(self, record: BlockRecord) -> bool:
        """Tell whether every server says that it has a block not at all, or damaged."""
        for server in self._health.servers:
            digest = await outcome_of(
                server.call(self._metadata.deadline_seconds, DataMethods.digest, record.block, 0, 0)
            )
            if digest == record.digest or not isinstance(digest, bytes | BlockMissing | BlockDamaged):
                return False
        return True

    async def _read(self, record: BlockRecord, holders: Sequence[Server]) -> bytes | None:
        """Return a block's bytes from the first server that has them right."""
        for server in holders:
            part = await outcome_of(
                server.call(self._metadata.deadline_seconds, DataMethods.get, record.block, 0, 0)
            )
            if not isinstance(part, QuorumfsError) and block_digest(part.data) == record.digest:
                return bytes(part.data)
        return None

    async def _delete_old(self, kept: Sequence[int], held: Mapping[int, Sequence[BlockRecord]]) -> None:
        for server in self._health.up:
            if old := manifest.superseded(kept, held.get(server.number, ())):
                await outcome_of(server.call(self._metadata.deadline_seconds, DataMethods.delete, old))
