"""Blocks given without a call to one real data server process: killed, ended, restarted, stopped, damaged."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dataserver.block_rings import MOST_RINGS
from tests.cluster.test_dataserver_process import Running, Start, block_id, start, talk
from tests.support import wait_until
from wire.block_ring import GivenBlock, pack_record, record_offset
from wire.client import Client
from wire.digest import block_digest
from wire.errors import BlockMissing, QuorumfsError
from wire.messages import BlockRing
from wire.methods import DataMethods, LabMethods
from wire.ring_file import own_files
from wire.ring_head import BLOCKS, HEAD_READ_BYTES, SHARED_MEMORY, prefix, unpack_head

__all__ = ["start"]


@pytest.fixture(autouse=True)
def no_rings_left(tmp_path: Path) -> Iterator[None]:
    """What servers that are killed leave in shared memory goes with their directories."""
    yield
    for path in own_files(SHARED_MEMORY, prefix(tmp_path / "server" / "data", BLOCKS)):
        path.unlink()


FIRST = b"the first block of a run"


def ring_files(server: Running) -> list[Path]:
    return list(own_files(SHARED_MEMORY, prefix(server.directory / "data", BLOCKS)))


def write(ring: BlockRing, number: int, data: bytes = b"given") -> GivenBlock:
    """Write a block into a ring, as a mediator does."""
    given = GivenBlock(number, ring.term, len(data), secrets.token_bytes(16), block_digest(data))
    with Path(os.fsdecode(ring.place)).open("r+b") as file:
        file.seek(record_offset(number) - len(data))
        file.write(data + pack_record(given))
    return given


def taken(ring: BlockRing) -> int:
    head = unpack_head(Path(os.fsdecode(ring.place)).read_bytes()[:HEAD_READ_BYTES])
    return head.taken if head is not None else -1


async def open_ring(client: Client) -> BlockRing:
    await client.call(5, DataMethods.put, block_id(1), block_digest(FIRST), FIRST, False)
    ring = await client.call(5, DataMethods.open_ring)
    assert ring.term
    return ring


async def has(client: Client, given: list[GivenBlock]) -> bool:
    parts = [await client.call(5, DataMethods.get, each.block, 0, 0) for each in given]
    return [block_digest(bytes(part.data)) for part in parts] == [each.digest for each in given]


def by_a_client(address: str, story: Callable[[Client], Awaitable[Any]]) -> Any:
    """Return what came of a story that has a connection of its own."""
    found: list[Any] = []

    async def told(client: Client) -> None:
        found.append(await story(client))

    talk(address, "msgpack", told)
    return found[0]


CALLS: dict[str, Callable[[Client, GivenBlock], Awaitable[Any]]] = {
    "get": lambda client, given: client.call(20, DataMethods.get, given.block, 0, 0),
    "digest": lambda client, given: client.call(20, DataMethods.digest, given.block, 0, 0),
    "corrupt": lambda client, given: client.call(20, LabMethods.corrupt, given.block.hex(), "flip"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_comes_after_what_was_given_before_it(start: Start, name: str) -> None:
    server = start("--lab")

    async def story(client: Client) -> None:
        ring = await open_ring(client)
        for number in range(1, 21):
            server.process.send_signal(signal.SIGSTOP)
            given = write(ring, number)
            call = asyncio.ensure_future(CALLS[name](client, given))
            for _ in range(5):
                await asyncio.sleep(0)
            server.process.send_signal(signal.SIGCONT)
            await call  # it would not be found

    talk(server.ready(), "msgpack", story)


def test_what_was_given_by_and_after_a_kill_is_there_at_the_next_start(start: Start) -> None:
    server = start()
    ring = by_a_client(server.ready(), open_ring)
    server.process.send_signal(signal.SIGSTOP)
    given = [write(ring, number) for number in range(1, 6)]
    server.end(signal.SIGKILL)
    given += [write(ring, number) for number in range(6, 9)]
    server = start()
    assert by_a_client(server.ready(), lambda client: has(client, given))
    wait_until(lambda: not ring_files(server), 10, "the ring is gone")


def test_a_kill_again_and_again_takes_nothing(start: Start) -> None:
    server = start()
    given: list[GivenBlock] = []
    for _ in range(4):
        ring = by_a_client(server.ready(), open_ring)
        given += [write(ring, number) for number in range(1, 31)]
        server.end(signal.SIGKILL)
        server = start()
    assert by_a_client(server.ready(), lambda client: has(client, given))


@contextmanager
def mounted(layers: Path, at: Path) -> Iterator[None]:
    """Mount a file system that gets another device number with each mount, as a loop device may."""
    names = [layers / name for name in ("lower", "upper", "work")]
    for path in (*names, at):
        path.mkdir(parents=True, exist_ok=True)
    options = "lowerdir={},upperdir={},workdir={}".format(*names)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def test_a_disk_that_is_mounted_again_with_another_number_brings_what_was_given(
    start: Start, tmp_path: Path
) -> None:
    data = tmp_path / "server" / "data"
    with mounted(tmp_path / "disk", data):
        server = start()
        ring = by_a_client(server.ready(), open_ring)
        server.process.send_signal(signal.SIGSTOP)
        given = [write(ring, number) for number in range(1, 6)]
        server.end(signal.SIGKILL)
        device = data.stat().st_dev
    with mounted(tmp_path / "other", tmp_path / "elsewhere"), mounted(tmp_path / "disk", data):
        assert data.stat().st_dev != device
        server = start()
        assert by_a_client(server.ready(), lambda client: has(client, given))
        server.end(signal.SIGTERM)
        assert not ring_files(server)


@pytest.mark.parametrize("how", ["another cluster's", "a blank one", "a copy"])
def test_what_was_given_is_for_the_very_server_and_directory(start: Start, how: str) -> None:
    """The other one starts first: in a directory of the same number, or with all that the server had."""
    server = start()
    ring = by_a_client(server.ready(), open_ring)
    server.process.send_signal(signal.SIGSTOP)
    given = write(ring, 1)
    server.end(signal.SIGKILL)
    data, aside = server.directory / "data", server.directory / "aside"
    if how == "a copy":
        data.rename(aside)
        shutil.copytree(aside, data)
        other = start()
    else:
        shutil.copytree(data, aside)
        for entry in data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        other = start(cluster="another" if how == "another cluster's" else "test")
    with pytest.raises(BlockMissing):
        by_a_client(other.ready(), lambda client: has(client, [given]))
    other.end(signal.SIGTERM)
    assert Path(os.fsdecode(ring.place)).exists()
    if how == "a copy":
        shutil.rmtree(data)
        aside.rename(data)
    else:
        for entry in data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(aside, data, dirs_exist_ok=True)
    assert by_a_client(start().ready(), lambda client: has(client, [given]))


def test_the_end_takes_in_all_and_leaves_no_ring(start: Start) -> None:
    server = start()
    ring = by_a_client(server.ready(), open_ring)
    server.process.send_signal(signal.SIGSTOP)
    given = [write(ring, number) for number in range(1, 6)]
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGCONT)
    assert server.end(signal.SIGTERM) == 0
    assert not ring_files(server)
    server = start()
    assert by_a_client(server.ready(), lambda client: has(client, given))


@pytest.mark.parametrize("blank", [False, True])
def test_a_restart_from_within_keeps_what_was_given_unless_it_is_blank(start: Start, blank: bool) -> None:
    server = start("--lab")
    address = server.ready()

    async def restart(client: Client) -> list[GivenBlock]:
        ring = await open_ring(client)
        given = [write(ring, number) for number in range(1, 6)]
        await client.call(5, LabMethods.restart, blank)
        return given

    given = by_a_client(address, restart)
    assert server.ready() == address
    if blank:
        with pytest.raises(BlockMissing):
            by_a_client(address, lambda client: has(client, given))
    else:
        assert by_a_client(address, lambda client: has(client, given))
    assert not ring_files(server)


def test_what_is_given_once_nobody_calls_any_more_is_taken_in_soon(start: Start) -> None:
    server = start()
    ring = by_a_client(server.ready(), open_ring)
    for number in range(1, 4):
        write(ring, number)
        wait_until(lambda number=number: taken(ring) == number, 10, "it is taken in")  # type: ignore[misc]


def test_an_index_that_is_built_anew_loses_nothing_that_was_given(start: Start) -> None:
    server = start()
    address = server.ready()
    index = server.directory / "data" / "index.sqlite"

    async def story(client: Client) -> list[GivenBlock]:
        ring = await open_ring(client)
        given = [write(ring, number) for number in range(1, 6)]
        for file in (index, index.with_name("index.sqlite-wal")):
            if file.exists():
                file.write_bytes(b"\xff" * file.stat().st_size)
        server.process.send_signal(signal.SIGSTOP)
        given += [write(ring, number) for number in range(6, 11)]
        server.process.send_signal(signal.SIGCONT)
        with suppress(QuorumfsError):
            await client.call(5, DataMethods.inventory, b"", 10)
        return given

    given = by_a_client(address, story)
    assert server.ready() == address
    assert by_a_client(address, lambda client: has(client, given))


def test_rings_that_callers_ask_for_again_and_again_are_few_and_lose_nothing(start: Start) -> None:
    server = start()

    async def story(client: Client) -> list[GivenBlock]:
        given = [write(await open_ring(client), 1)]
        for _ in range(20):
            if (ring := await client.call(5, DataMethods.open_ring)).term:
                given.append(write(ring, 1))
        return given

    address = server.ready()
    given = by_a_client(address, story)
    assert by_a_client(address, lambda client: has(client, given))
    assert len(ring_files(server)) == len(given) == MOST_RINGS
    server.end(signal.SIGTERM)
