"""Who is up: a heartbeat to every server, and what follows from it for writes.

A server is down when its connection is refused or breaks (at once), when it leaves heartbeats and all else
unanswered for a while, or when it is not the one that the configuration names. It moves no blocks. One loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal

from mediator.fanout import survive
from mediator.servers import Server
from wire.address import is_of_one_machine
from wire.client_msgpack import REFUSED_SECONDS
from wire.errors import DeadlineExceeded, QuorumfsError
from wire.messages import Identity
from wire.methods import CommonMethods
from wire.quorum import Quorum

HEARTBEAT_SECONDS = 0.5
PROBE_SECONDS = 1.5
"""A heartbeat must be answered within."""
FIRST_SECONDS = 0.05
"""A server that this mediator has not reached yet is looked at so often: a cluster starts all at once."""
RECHECK_SECONDS = 0.25
"""How long a refusal waits for servers that were down to show that they are back."""

Kind = Literal["dataserver", "metaserver"]


def misplaced(identity: Identity, kind: Kind, cluster: str, number: int) -> str:
    """Return why the server that answers is not the one expected there; "" if it is."""
    if identity.kind != kind:
        return f"a {identity.kind} answers there, not a {kind}; check the addresses in the configuration"
    if identity.cluster != cluster:
        return f"it belongs to the cluster {identity.cluster!r}, not to {cluster!r}; it is not used"
    if kind == "dataserver" and identity.number != number:
        return f"it is data server {identity.number}, not {number}; it is not used"
    return ""


def is_writable(quorum: Quorum, servers: Sequence[Server]) -> bool:
    """Tell whether Qw data servers are known to be up."""
    return [server.up for server in servers].count(True) >= quorum.write


def writable(quorum: Quorum, servers: Sequence[Server]) -> tuple[bool, str]:
    """Tell whether Qw data servers are known to be up, and if not, why and what to do."""
    if is_writable(quorum, servers):
        return True, ""
    down = [server for server in servers if not server.up]
    up = len(servers) - len(down)
    # What transport errors say begins with the address already.
    who = ", ".join(
        f"{server.number} ({server.address}: {server.error.removeprefix(f'{server.address}: ')})"
        for server in down
    )
    return False, (
        f"{up} of {quorum.servers} data servers {'is' if up == 1 else 'are'} up, "
        f"Qw={quorum.write} are needed to write; down: {who}. "
        f"{_how_to_start(down)}; until then files can only be read"
    )


def _how_to_start(down: Sequence[Server]) -> str:
    if all(is_of_one_machine(server.address) for server in down):
        return "Start them again with `quorumfs up`"
    return (
        "Start each again on its own machine, by its unit of systemd or with "
        "`quorumfs serve data --number NUMBER`"
    )


class Health:
    """Keeps the state of all servers true.

    Args:
        cluster, quorum, servers, metaserver: of the configuration.
        silence_seconds: who answers nothing for so long is down; less may be a busy disk.
        came_up: is told of each server that is back or was restarted.
    """

    def __init__(
        self,
        cluster: str,
        quorum: Quorum,
        servers: Sequence[Server],
        metaserver: Server,
        silence_seconds: float,
        came_up: Callable[[Server], None],
    ) -> None:
        self.cluster = cluster
        self.quorum = quorum
        self.servers = servers
        self.metaserver = metaserver
        self._came_up = came_up
        self._silence_seconds = silence_seconds
        self._silent_since: dict[int, float] = {}
        """By server: since when it has answered nothing; only of those with heartbeats unanswered."""
        self._recheck: asyncio.Task[None] | None = None

    @property
    def up(self) -> list[Server]:
        """The data servers that are used now."""
        return [server for server in self.servers if server.up]

    @property
    def is_writable(self) -> bool:
        """Whether writes are possible now."""
        return is_writable(self.quorum, self.servers)

    def writable(self) -> tuple[bool, str]:
        """Tell whether writes are possible now, and if not, why and what to do."""
        return writable(self.quorum, self.servers)

    async def run_once(self, server: Server, deadline_seconds: float = PROBE_SECONDS) -> None:
        """Look at one server and note its state."""
        kind: Kind = "dataserver" if server.number else "metaserver"
        begun = time.monotonic()
        try:
            identity = await server.call(deadline_seconds, CommonMethods.identity)
        except DeadlineExceeded:
            self._note_late(server, begun)
            return
        except QuorumfsError as error:
            server.mark_down(error.message)
            return
        self._silent_since.pop(server.number, None)
        if wrong := misplaced(identity, kind, self.cluster, server.number):
            server.mark_down(wrong)
            return
        back = not server.up or server.epoch != identity.epoch
        server.epoch = identity.epoch
        server.mark_up()
        if back:
            self._came_up(server)

    def _note_late(self, server: Server, begun: float) -> None:
        """Note a heartbeat of then that is not answered."""
        if server.answered >= begun:  # but another call since
            self._silent_since.pop(server.number, None)
            return
        since = self._silent_since.setdefault(server.number, begun)
        if time.monotonic() - since >= self._silence_seconds or not server.up:
            server.mark_down("it does not answer")

    async def run_forever(self) -> None:
        """Watch all servers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for server in (*self.servers, self.metaserver):
                group.create_task(self._watch(server), name=f"heartbeat of server {server.number}")

    async def _watch(self, server: Server) -> None:
        while True:
            await survive(self.run_once(server), f"heartbeat of server {server.number}")
            server.look.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS if server.epoch else FIRST_SECONDS):
                    await server.look.wait()
                await asyncio.sleep(HEARTBEAT_SECONDS / 10)
            except TimeoutError:
                pass

    async def first_look(self) -> None:
        """Look at every server once, so that a fresh mediator refuses nothing out of ignorance."""
        await asyncio.gather(*(self.run_once(server) for server in (*self.servers, self.metaserver)))

    async def recheck(self) -> None:
        """Look at once at the data servers that are down: a refusal must not rest on old news."""
        if self._recheck is None or self._recheck.done():
            self._recheck = asyncio.get_running_loop().create_task(self._look_at_down(), name="recheck")
        await asyncio.shield(self._recheck)

    async def _look_at_down(self) -> None:
        await asyncio.gather(*(self._look_anew(server) for server in self.servers if not server.up))

    async def _look_anew(self, server: Server) -> None:
        """Look at a server that is down; again if a first look may have shared an attempt from before."""
        begun = time.monotonic()
        await self.run_once(server, RECHECK_SECONDS)
        if not server.up and time.monotonic() - begun < RECHECK_SECONDS:
            await asyncio.sleep(1.2 * REFUSED_SECONDS)
            await self.run_once(server, RECHECK_SECONDS)
