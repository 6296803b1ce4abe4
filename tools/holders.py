"""What data servers hold, whether they run or are stopped: one way to look at both.

A running server is asked; of a stopped one the directory is read. It must not change anything. One thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from mediator.refill import PAGE
from tools.locate import CALL_SECONDS
from tools.whole import Watch, read_stopped, require_data_server
from wire.blocking import BlockingClient
from wire.config import ClusterConfig, ConfigError, DataServerConfig
from wire.digest import block_digest
from wire.errors import QuorumfsError, Unavailable
from wire.messages import BlockRecord
from wire.methods import DataMethods


class Holder(NamedTuple):
    """One data server: the records of its blocks, and what reads one (None if it cannot)."""

    number: int
    records: dict[bytes, BlockRecord]
    fetch: Callable[[bytes], bytes | None]

    def read(self, record: BlockRecord) -> bytes | None:
        """Return a block's bytes if they are just what the record says, else None."""
        if self.records.get(record.block) != record:
            return None
        data = self.fetch(record.block)
        if data is None or len(data) != record.length or block_digest(data) != record.digest:
            return None
        return data


def look(config: ClusterConfig, stack: ExitStack, watch: Watch) -> tuple[list[Holder], dict[int, str]]:
    """Look at all data servers; return those that could be seen, and of the others why not.

    Args:
        config: the cluster.
        stack: closes the clients.
        watch: told which server is being looked at.
    """
    seen: list[Holder] = []
    unseen: dict[int, str] = {}
    for done, place in enumerate(config.data_servers):
        watch(f"data-{place.number}", done, len(config.data_servers))
        try:
            seen.append(_look_at(config, place, stack))
        except QuorumfsError as error:
            unseen[place.number] = error.message
        except ConfigError as error:
            unseen[place.number] = str(error)
    return seen, unseen


def _look_at(config: ClusterConfig, place: DataServerConfig, stack: ExitStack) -> Holder:
    client = BlockingClient([place.listen], config.rpc, connect_seconds=config.deadlines.connect_seconds)
    stack.callback(client.close)
    try:
        require_data_server(client, config, place)
    except Unavailable:
        return stopped(place, config.cluster)
    return _running(place.number, client)


def _running(number: int, client: BlockingClient) -> Holder:
    records: dict[bytes, BlockRecord] = {}
    after = b""
    while page := client.call(CALL_SECONDS, DataMethods.inventory, after, PAGE):
        records.update((record.block, record) for record in page)
        after = page[-1].block

    def fetch(block: bytes) -> bytes | None:
        try:
            return bytes(client.call(CALL_SECONDS, DataMethods.get, block, 0, 0).data)
        except QuorumfsError:
            return None

    return Holder(number, records, fetch)


def stopped(place: DataServerConfig, cluster: str) -> Holder:
    """Look at the directory of a data server that is stopped. Raises ConfigError."""
    places = {replica.block: replica for replica in read_stopped(place, cluster).replicas}

    def fetch(block: bytes) -> bytes | None:
        found = places[block]
        return _read(found.path, found.payload_offset, found.length)

    records = {block: BlockRecord(block, found.length, found.digest) for block, found in places.items()}
    return Holder(place.number, records, fetch)


def _read(path: Path, offset: int, length: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)
    except OSError:
        return None
