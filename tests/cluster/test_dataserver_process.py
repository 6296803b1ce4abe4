"""One real data server process, driven as its users do: in both encodings, killed, restarted, corrupted."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import wait_until
from wire.client import Client
from wire.config import ClusterConfig, DataServerConfig, Encoding, dumps
from wire.digest import block_digest, piece_digests
from wire.errors import BlockConflict, BlockMissing, DigestMismatch, LabOnly, QuorumfsError
from wire.lending import make_lender
from wire.messages import BlockPart, BlockRecord
from wire.methods import CommonMethods, DataMethods, LabMethods
from wire.quorum import Quorum

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 20.0


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Running:
    """A data server process and what it printed."""

    def __init__(self, directory: Path, *options: str, cluster: str = "test") -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        config = ClusterConfig(
            cluster=cluster,
            quorum=Quorum(1, 1, 1),
            mediator_listen="127.0.0.1:0",
            metaserver_listen="127.0.0.1:0",
            metaserver_directory=directory / "meta",
            data_servers=(DataServerConfig(1, "127.0.0.1:0", directory / "data"),),
        )
        file = directory / "cluster.toml"
        file.write_text(dumps(config))
        self.errors = (directory / "stderr").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dataserver", "--config", str(file), "--number", "1", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def ready(self) -> str:
        """Return the address of the next ready line."""
        assert self.process.stdout is not None
        line, deadline = b"", time.monotonic() + READY_SECONDS
        while not line.endswith(b"\n"):
            wait = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], wait)[0], "not ready in time: " + self.log()
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, "ended before it was ready: " + self.log()
            line += byte
        word, kind, number, address = line.decode().split()
        assert (word, kind, number) == ("ready", "dataserver", "1")
        return address

    def log(self) -> str:
        return (self.directory / "stderr").read_text()

    def end(self, number: int = signal.SIGKILL) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return status


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Running] = []

    def begin(*options: str, **settings: Any) -> Running:
        running.append(Running(tmp_path / "server", *options, **settings))
        return running[-1]

    yield begin
    for server in running:
        server.end()
    assert "Traceback" not in (tmp_path / "server" / "stderr").read_text()


def talk(address: str, rpc: Encoding, story: Callable[[Client], Any]) -> None:
    async def run() -> None:
        client = Client(address, rpc)
        try:
            await story(client)
        finally:
            await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("rpc", ["msgpack", "xml"])
def test_blocks_in_and_out(start: Start, rpc: Encoding) -> None:
    address = start().ready()
    data = os.urandom(200_000)
    digest = block_digest(data)

    async def story(client: Client) -> None:
        assert (await client.call(5, CommonMethods.identity))[:3] == ("dataserver", "test", 1)
        await client.call(5, DataMethods.put, block_id(1), digest, data, True)
        await client.call(5, DataMethods.put, block_id(2), block_digest(b"small"), b"small", True)
        part = await client.call(5, DataMethods.get, block_id(1), 0, 0)
        assert part == BlockPart(len(data), piece_digests(data), data)
        assert await client.call(5, DataMethods.digest, block_id(1), 1, 1) == digest
        assert await client.call(5, DataMethods.sync, [block_id(1), block_id(3)]) == [block_id(3)]
        assert await client.call(5, DataMethods.repair, block_id(1), digest, data, "why") == "good"
        inventory = await client.call(5, DataMethods.inventory, b"", 10)
        assert inventory[0] == BlockRecord(block_id(1), len(data), digest)
        assert await client.call(5, DataMethods.delete, [block_id(2), block_id(9)]) == 1
        assert await client.call(5, DataMethods.count) == 1
        status = await client.call(5, CommonMethods.status)
        assert (status["number"], status["blocks"], status["damaged_regions"]) == (1, 1, 0)
        for error, arguments in (
            (BlockConflict, (block_id(1), block_digest(b"x"), b"x", False)),
            (DigestMismatch, (block_id(4), block_digest(b"x"), b"y", False)),
        ):
            with pytest.raises(error):
                await client.call(5, DataMethods.put, *arguments)
        with pytest.raises(BlockMissing):
            await client.call(5, DataMethods.get, block_id(9), 0, 0)
        with pytest.raises(LabOnly):
            await client.call(5, LabMethods.list_contents)

    talk(address, rpc, story)


def test_durable_puts_in_parallel_share_syncs(start: Start) -> None:
    address = start().ready()

    async def story(client: Client) -> None:
        blocks = [os.urandom(size) for size in (100, 9000, 70_000, 1_000_000) * 10]
        await asyncio.gather(
            *(
                client.call(20, DataMethods.put, block_id(number), block_digest(data), data, True)
                for number, data in enumerate(blocks)
            )
        )
        parts = await asyncio.gather(
            *(client.call(20, DataMethods.get, block_id(number), 0, 0) for number in range(len(blocks)))
        )
        assert [part.data for part in parts] == blocks

    talk(address, "msgpack", story)


def test_sigterm_ends_it_cleanly_and_a_start_serves_what_is_there(start: Start) -> None:
    server = start()

    async def fill(client: Client) -> None:
        await client.call(5, DataMethods.put, block_id(1), block_digest(b"kept"), b"kept", False)

    async def look(client: Client) -> None:
        assert (await client.call(5, DataMethods.get, block_id(1), 0, 0)).data == b"kept"

    talk(server.ready(), "msgpack", fill)
    assert server.end(signal.SIGTERM) == 0
    server = start()
    talk(server.ready(), "msgpack", look)
    server.end(signal.SIGKILL)
    talk(start().ready(), "msgpack", look)


def test_an_index_that_is_damaged_while_it_runs_is_no_trouble_at_the_end(start: Start) -> None:
    server = start()

    async def fill(client: Client) -> None:
        await client.call(5, DataMethods.put, block_id(1), block_digest(b"kept"), b"kept", True)

    async def look(client: Client) -> None:
        assert (await client.call(5, DataMethods.get, block_id(1), 0, 0)).data == b"kept"

    talk(server.ready(), "msgpack", fill)
    for name in ("index.sqlite", "index.sqlite-wal"):
        with (server.directory / "data" / name).open("r+b") as file:
            file.write(b"no index" * 10_000)
    assert server.end(signal.SIGTERM) == 0
    assert "left to the next start" in server.log()
    talk(start().ready(), "msgpack", look)


def test_a_directory_of_another_cluster_is_refused(start: Start) -> None:
    server = start()
    server.ready()
    second = start()
    assert second.process.wait(20) == 2
    assert "served by another process" in server.log()
    server.end()
    stranger = start(cluster="other")
    assert stranger.process.wait(20) == 2
    assert "belongs to data server 1 of cluster test" in server.log().splitlines()[-1]


class TestLab:
    """As the classic test scripts do it: a stock xmlrpc.client.ServerProxy."""

    def proxy(self, address: str) -> xmlrpc.client.ServerProxy:
        return xmlrpc.client.ServerProxy(f"http://{address}", use_builtin_types=True, allow_none=True)

    def put(self, proxy: Any, number: int, data: bytes) -> str:
        proxy.put(block_id(number), block_digest(data), data, False)
        return block_id(number).hex()

    def test_corrupt(self, start: Start) -> None:
        server = start("--lab")
        proxy: Any = self.proxy(server.ready())
        keys = [self.put(proxy, number, os.urandom(5000)) for number in range(6)]
        assert proxy.list_contents() == keys
        for key, kind in zip(keys, ("flip", "torn", "zeros", "swap", "lie"), strict=False):
            before = proxy.digest(bytes.fromhex(key), 0, 0)
            assert key in proxy.corrupt(key, kind)
            assert proxy.digest(bytes.fromhex(key), 0, 0) != before
        lines = proxy.print_content().splitlines()
        assert [line.split()[2] for line in lines] == ["corrupt"] * 4 + ["good"] * 2
        assert lines[0] in server.log()
        for key, kind in ((keys[5], "no such kind"), ("ff" * 16, "flip"), ("no hex", "flip")):
            with pytest.raises(xmlrpc.client.Fault):
                proxy.corrupt(key, kind)

    def test_terminate(self, start: Start) -> None:
        server = start("--lab")
        proxy: Any = self.proxy(server.ready())
        self.put(proxy, 1, b"kept")
        assert proxy.terminate() is True
        assert server.process.wait(10) == -signal.SIGKILL
        assert self.proxy(start().ready()).count() == 1

    @pytest.mark.parametrize("blank", [False, True])
    def test_restart(self, start: Start, blank: bool) -> None:
        server = start("--lab")
        address = server.ready()
        proxy: Any = self.proxy(address)
        self.put(proxy, 1, b"kept")
        epoch = proxy.identity()[3]
        assert proxy.restart(blank) is True
        assert server.ready() == address
        proxy = self.proxy(address)
        assert proxy.count() == (0 if blank else 1)
        assert proxy.identity()[3] > epoch
        discarded = (server.directory / "data").glob("discarded-*")
        wait_until(lambda: not list(discarded), 5, "the old contents are removed")
        assert server.process.poll() is None


def test_errors_of_the_store_are_not_defects(start: Start) -> None:
    """Whatever a caller sends, the answer is an error of the tree and the log has no traceback."""
    address = start("--lab").ready()

    async def story(client: Client) -> None:
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (DataMethods.put, (b"", b"", b"", False)),
            (DataMethods.get, (b"x", 0, 0)),
            (DataMethods.get, (block_id(1), -1, 0)),
            (DataMethods.digest, (block_id(1), 0, 2**62)),
            (DataMethods.delete, ([b""],)),
            (DataMethods.sync, ([b"\xff" * 99],)),
            (DataMethods.inventory, (b"\xff" * 99, 2**62)),
            (DataMethods.inventory, (b"", -5)),
            (LabMethods.corrupt, ("\u20ac", "flip")),
        ]
        for method, arguments in calls:
            try:
                await client.call(5, method, *arguments)
            except QuorumfsError as error:
                assert error.fault_code not in (1, 900), (method, arguments, error)

    talk(address, "msgpack", story)


@pytest.mark.parametrize("damage", ["page", "row", "all"])
def test_an_index_that_is_damaged_while_it_runs_is_built_anew(start: Start, damage: str) -> None:
    blocks = {block_id(number): b"%d" % number * 100 for number in range(500)}

    async def put_all(client: Client) -> None:
        for block, data in blocks.items():
            await client.call(5, DataMethods.put, block, block_digest(data), data, False)

    async def all_found(client: Client) -> None:
        parts = [await client.call(5, DataMethods.get, block, 0, 0) for block in blocks]
        assert [bytes(part.data) for part in parts] == list(blocks.values())

    async def meets_damage(client: Client) -> None:
        with pytest.raises(QuorumfsError):
            await all_found(client)

    server = start()
    talk(server.ready(), "msgpack", put_all)
    server.end(signal.SIGTERM)
    server = start()
    address = server.ready()
    index = server.directory / "data" / "index.sqlite"
    contents = bytearray(index.read_bytes())
    for at in range(4096, len(contents), 4096):
        if damage == "page":
            contents[at : at + 100] = bytes(100)
        elif damage == "row":
            contents[at + 4000] ^= 4
    with index.open("r+b") as file:
        file.write(bytes(len(contents)) if damage == "all" else contents)
    talk(address, "msgpack", meets_damage)
    assert server.ready() == address
    talk(address, "msgpack", all_found)
    assert server.end(signal.SIGTERM) == 0


def test_what_was_served_before_an_index_was_built_anew_keeps_no_memory(start: Start) -> None:
    """What callers lent it was mapped once more each time."""
    server = start()
    address, data = server.ready(), bytes(200_000)
    index = server.directory / "data" / "index.sqlite"

    def lent() -> int:
        return Path(f"/proc/{server.process.pid}/maps").read_text().count("quorumfs-lent")

    async def begins_anew(client: Client) -> int:
        for file in (index, index.with_name("index.sqlite-wal")):
            if file.exists():
                file.write_bytes(b"\xff" * file.stat().st_size)
        with suppress(QuorumfsError):
            await client.call(5, DataMethods.inventory, b"", 10)
        assert await asyncio.to_thread(server.ready) == address
        await client.call(5, DataMethods.put, block_id(1), block_digest(data), data, False)
        return lent()

    async def story() -> None:
        client = Client(address, "msgpack", lender=make_lender())
        try:
            first = await begins_anew(client)
            assert await begins_anew(client) == await begins_anew(client) == first > 0
        finally:
            await client.close()

    asyncio.run(story())


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told_when_it_is_ready(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(READY_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + path if abstract else path)
        server = Running(tmp_path / "server")
        try:
            assert manager.recv(100) == b"READY=1"
            server.ready()
        finally:
            server.end()


def test_a_service_manager_that_is_gone_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    server = Running(tmp_path / "server")
    server.ready()
    wait_until(lambda: "the service manager cannot be told" in server.log(), READY_SECONDS, "it says so")
    assert server.end(signal.SIGTERM) == 0
