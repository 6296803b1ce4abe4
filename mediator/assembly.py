"""The mediator's parts, put together, and what runs in the background. One event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from mediator.collect import Collector
from mediator.compact import Compactor
from mediator.copies import MetadataCopies
from mediator.explain import Explainer, quorum_as_data
from mediator.fanout import Background
from mediator.health import Health
from mediator.lag import LagKeeper
from mediator.ledger import Ledger
from mediator.milestones import Milestones
from mediator.pace import Pace
from mediator.read_path import ReadPath
from mediator.refill import Refills
from mediator.refusals import Refusals
from mediator.repair import Repairs
from mediator.risk import RiskWatch
from mediator.room import Room
from mediator.scrub import DAY_SECONDS, Scrubs
from mediator.servers import MakeClient, Metadata, Server
from mediator.small_reads import SmallReads
from mediator.turns import Turns
from mediator.vote import servers_in_words
from mediator.write_path import WritePath
from wire.config import ClusterConfig
from wire.errors import InvalidArgument


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e6)


class Mediator:
    """All parts of one mediator process, over clients that come in from outside."""

    def __init__(self, config: ClusterConfig, make_client: MakeClient) -> None:
        quorum, vote_seconds = config.quorum, config.deadlines.vote_seconds
        self.quorum = quorum
        self.background = Background()
        self.refusals = Refusals()
        servers = [Server(s.number, s.listen, make_client) for s in config.data_servers]
        servers.sort(key=lambda server: server.number)
        metaserver = Server(0, config.metaserver_listen, make_client)
        self.metadata = Metadata(metaserver, config.deadlines.metadata_seconds, vote_seconds)
        self.health = Health(
            config.cluster, quorum, servers, metaserver, config.deadlines.silence_seconds, self._came_up
        )
        self.ledger = Ledger(self.metadata)
        self.repairs = Repairs(quorum, self.health, self.metadata, self.background, self.ledger, vote_seconds)
        self.milestones = Milestones(quorum, self.health, self.metadata, self._metadata_is_older)
        turns = Turns(Pace(config.refill_bytes_per_second))
        self.refills = Refills(
            self.health,
            self.metadata,
            self.repairs,
            self.background,
            turns,
            copies_on=self._copies_on,
            require_compared=self.milestones.require_compared,
            is_only=len(config.mediators) == 1,
        )
        numbers = [server.number for server in servers]
        self.lag = LagKeeper(numbers, self.metadata, self.background, self.refills.heal)
        self.risk = RiskWatch(quorum, self.metadata)
        self.collector = Collector(self.health, self.metadata, config.garbage_grace_seconds, vote_seconds)
        self.read_path = ReadPath(
            quorum, self.health, self.metadata, self.repairs, self._count_user_calls, vote_seconds
        )
        self.small_reads = SmallReads(quorum, self.metadata, self.repairs, vote_seconds)
        self.room = Room(
            quorum,
            servers,
            self.metadata,
            lambda: self.collector.deleted_at,
            self._has_room_again,
            self.health.recheck,
        )
        self.write_path = WritePath(
            quorum,
            self.health,
            self.metadata,
            self.repairs,
            self.room,
            self.lag,
            self.background,
            vote_seconds,
        )
        self.compactor = Compactor(self.metadata, self.read_path, self.write_path)
        self.copies = MetadataCopies(
            config.cluster,
            quorum,
            self.health,
            self.metadata,
            self.write_path,
            self.ledger,
            config.metadata_copy_seconds,
        )
        self.scrubs = Scrubs(
            self.health,
            self.metadata,
            self.repairs,
            self.copies,
            self.background,
            self._count_user_calls,
            config.scrub_days * DAY_SECONDS,
            config.scrub_bytes_per_second,
        )
        self.explainer = Explainer(quorum, self.health, self.metadata, self.repairs, self.refusals)

    @property
    def votes(self) -> int:
        """How many votes on blocks were held to answer reads."""
        return self.read_path.votes + self.small_reads.votes

    def _count_user_calls(self) -> int:
        return self.votes + self.write_path.puts

    def _metadata_is_older(self) -> None:
        """The metadata is not what this mediator knows of it: nothing is vouched for, all is compared."""
        self.refills.distrust()

    def _came_up(self, server: Server) -> None:
        self.milestones.came_up(server)
        if server.number:
            self.collector.restarted(server)
            self.scrubs.came_up(server)
            self.refills.came_up(server)
        else:
            self.refills.metadata_came_up()
        self.repairs.try_again()

    def _copies_on(self, server: Server) -> Awaitable[int]:
        return self.copies.count_on(server)

    def _has_room_again(self, server: Server) -> None:
        """Give a server that was full what it could not take."""
        self.refills.begin(server)
        self.repairs.try_again()

    async def start(self) -> None:
        """Learn who is up, then watch, refill and collect in the background until `stop`."""
        await self.health.first_look()
        self.background.start(self.health.run_forever(), "health")
        self.background.start(self.refills.inspect_forever(), "inspections")
        self.background.start(self.refills.heal_forever(), "healing what lags")
        self.background.start(self.milestones.run_forever(), "milestones")
        self.background.start(self.risk.run_forever(), "time at risk")
        self.background.start(self.collector.run_forever(), "garbage collection")
        self.background.start(self.compactor.run_forever(), "compaction")
        self.background.start(self.copies.run_forever(), "copies of the metadata")
        self.background.start(self.ledger.run_forever(), "ledger")
        self.background.start(self.scrubs.run_forever(), "scrubs")
        self.background.start(self.room.run_forever(), "looking for room")

    async def stop(self) -> None:
        """Stop what runs in the background and close all connections."""
        await self.background.stop()
        self.write_path.close()
        for server in (*self.health.servers, self.health.metaserver):
            await server.client.close()

    async def refill(self, number: int) -> dict[str, Any]:
        """Begin (or look at) the refill of a data server. Raises InvalidArgument."""
        server = self._by_number(self.health.servers, number)
        if not server.up:
            await self.health.recheck()  # it may have been started this moment
        if not server.up:
            raise InvalidArgument(f"data server {number} is down: {server.error}; start it first")
        return self.refills.look_or_begin(server)

    async def scrub(self, number: int, now: bool) -> list[dict[str, Any]]:
        """Look at, or begin, the scrub of a data server; 0 stands for all. Raises InvalidArgument."""
        servers = [self._by_number(self.health.servers, number)] if number else list(self.health.servers)
        if now:
            if not all(server.up for server in servers):
                await self.health.recheck()
            if down := [server.number for server in servers if not server.up]:
                raise InvalidArgument(f"data {servers_in_words(down)} must be up to be scrubbed; start it")
            await asyncio.gather(*map(self.scrubs.hurry, servers))
        return [progress for server in servers if (progress := self.scrubs.progress(server))]

    @staticmethod
    def _by_number(servers: Sequence[Server], number: int) -> Server:
        for server in servers:
            if server.number == number:
                return server
        raise InvalidArgument(f"there is no data server {number}: they are numbered 1 to {len(servers)}")

    async def status(self) -> dict[str, Any]:
        """Return how everything is, as plain data for people and programs."""
        statuses = await self.explainer.statuses()
        writable, reason = self.health.writable()
        return {
            "quorum": quorum_as_data(self.quorum),
            "writable": writable,
            "reason": reason,
            "no_room": self.room.refusal(),
            "servers": [
                self._describe(server, statuses.get(server.number)) for server in self.health.servers
            ],
            "metaserver": self._describe_link(self.health.metaserver),
            "votes": self.votes,
            "later_votes": self.read_path.later_votes.status(),
            "repairs": self.repairs.status(),
            "risk": self.risk.status(),
            "refusals": self.refusals.newest(),
            "refusal_count": self.refusals.count,
            "garbage": self.collector.status(),
            "compaction": self.compactor.status(),
            "metadata_copies": self.copies.status(),
            "milestone": self.milestones.status(),
            "background": {"running": len(self.background), "failed": self.background.failed},
        }

    def _describe(self, server: Server, status: dict[str, Any] | None) -> dict[str, Any]:
        said = status or {}
        return {
            "number": server.number,
            **self._describe_link(server),
            "blocks": said.get("blocks"),
            "quarantined": said.get("quarantined"),
            "full": server.full,
            "disk_failure": said.get("disk_failure"),
            "reads_us": {
                size: {"median": _microseconds(window.median), "p95": _microseconds(window.p95)}
                for size, window in server.reads.items()
            },
            "refill": self.refills.progress(server),
            "scrub": self.scrubs.progress(server),
        }

    @staticmethod
    def _describe_link(server: Server) -> dict[str, Any]:
        return {
            "address": server.address,
            "state": server.state,
            "since_ns": server.since_ns,
            "error": server.error,
        }
