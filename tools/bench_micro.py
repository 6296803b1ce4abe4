"""Single calls, each on the layer that it names, so that a slowdown is found where it is.

Every row is one kind of call from one client, one at a time, to real processes: of a throwaway cluster, or
(for the wire alone) of a server that only answers. Answers are checked off the clock. One thread.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.table import Table

from tools.bench_echo import EchoMethods
from tools.bench_results import FORMAT, median, percentile
from tools.cluster import LocalCluster
from tools.output import bytes_text, table
from tools.processes import ClusterError, python_command, python_environment
from tools.progress import progress_bar
from wire.blocking import BlockingClient
from wire.config import Encoding
from wire.digest import PIECE_BYTES, block_digest, part_matches
from wire.messages import (
    ROOT_INODE,
    AttributeChanges,
    Attributes,
    BlockPart,
    BlockRecord,
    Commit,
    Extent,
    Ticket,
)
from wire.methods import BookkeepingMethods, DataMethods, MediatorMethods, NamespaceMethods

CALL_SECONDS = 30.0
STOP_SECONDS = 10.0
KIB, MIB = 1024, 1024 * 1024
SIZES = (4 * KIB, PIECE_BYTES, MIB)
MOST_CALLS = 1000
ROW_SECONDS = 2.0
WARM_CALLS = 5
ENCODINGS: tuple[Encoding, ...] = ("msgpack", "xml")


class WrongAnswer(ClusterError):
    """A server's answer is not what was stored."""


@dataclass(frozen=True)
class Call:
    """A row: which layer it names, and what is called.

    Off the clock, `prepare` makes what the call with a number needs, and `check` tells from that and the
    answer whether the answer is right.
    """

    layer: str
    words: str
    prepare: Callable[[int], Any]
    call: Callable[[Any], Any]
    check: Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Timing:
    """What one kind of call took."""

    layer: str
    words: str
    calls: int
    median_us: float
    p99_us: float
    calls_per_second: float


def time_calls(row: Call, seconds: float = ROW_SECONDS, most: int = MOST_CALLS) -> Timing:
    """Carry out a call again and again, for so long or so often, after some that do not count.

    Raises:
        WrongAnswer: an answer was not what it must be.
    """
    taken: list[float] = []
    number = 0
    until = time.perf_counter() + seconds
    while number < WARM_CALLS + 1 or (len(taken) < most and time.perf_counter() < until):
        needed = row.prepare(number)
        began = time.perf_counter()
        answer = row.call(needed)
        ended = time.perf_counter()
        if not row.check(needed, answer):
            raise WrongAnswer(f"{row.layer}, {row.words}: the answer to call {number} is wrong")
        if number >= WARM_CALLS:
            taken.append(ended - began)
        number += 1
    return timing(row.layer, row.words, taken)


def timing(layer: str, words: str, taken: list[float]) -> Timing:
    """Return the figures of some calls, from the seconds that each took."""
    middle = median(taken)
    assert middle is not None, "at least one call was timed"
    return Timing(
        layer, words, len(taken), middle * 1e6, percentile(taken, 99) * 1e6, len(taken) / sum(taken)
    )


def measure(cluster: LocalCluster, scale: float) -> list[Timing]:
    """Time every row on a running cluster, with a progress bar.

    Args:
        cluster: a throwaway one: what is stored there stays there.
        scale: of the time and the number of calls.
    """
    with ExitStack() as stack:
        session = Session(cluster, stack)
        rows = [*wire_rows(stack), *session.rows()]
        bar = stack.enter_context(progress_bar(len(rows), "rows", len(rows) * ROW_SECONDS * scale))
        found = []
        for row in rows:
            bar.describe(f"{row.layer}: {row.words}")
            session.renew()
            began = time.monotonic()
            found.append(time_calls(row, ROW_SECONDS * scale, max(1, round(MOST_CALLS * scale))))
            bar.advance(time.monotonic() - began, 1, (len(rows) - len(found)) * ROW_SECONDS * scale)
        return found


def timings_table(timings: list[Timing]) -> Table:
    """Return the figures as a table for people."""
    rows = [
        (t.layer, t.words, str(t.calls), f"{t.median_us:.0f}", f"{t.p99_us:.0f}", f"{t.calls_per_second:.0f}")
        for t in timings
    ]
    return table(("layer", "call", "calls", "median us", "p99 us", "calls/s"), rows)


def dumps(timings: list[Timing], version: str, machine: dict[str, str]) -> str:
    """Return the figures as one JSON document."""
    rows = [asdict(timing) for timing in timings]
    document = {"format": FORMAT, "version": version, "machine": machine, "timings": rows}
    return json.dumps(document, indent=1) + "\n"


# The wire alone


def wire_rows(stack: ExitStack) -> Iterator[Call]:
    """Return calls to a server that only answers, in both encodings."""
    address = stack.enter_context(_echo_server())
    for rpc in ENCODINGS:
        client = BlockingClient([address], rpc)
        stack.callback(client.close)
        for size in (16, MIB):
            data = os.urandom(size)
            words = f"{rpc}, {_size(size)} there and back"
            yield Call("wire", words, partial(_constant, data), partial(_echo, client), bytes.__eq__)


def _constant(data: bytes, _number: int) -> bytes:
    return data


def _echo(client: BlockingClient, data: bytes) -> bytes:
    return client.call(CALL_SECONDS, EchoMethods.echo, data)


@contextmanager
def _echo_server() -> Iterator[str]:
    process = subprocess.Popen(
        python_command("tools.bench_echo"),
        env=python_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None, "it is a pipe"
        ready = process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            raise ClusterError("the server that only answers did not start; try: python -m tools.bench_echo")
        yield ready[-1]
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# A cluster


class Session:
    """A client of every kind of server, with the calls that are timed on each."""

    def __init__(self, cluster: LocalCluster, stack: ExitStack) -> None:
        def client(name: str) -> BlockingClient:
            made = BlockingClient([cluster.address(name)], cluster.config.rpc)
            stack.callback(made.close)
            return made

        self._data, self._mediator, self._meta = (
            client(name) for name in ("data-1", "mediator", "metaserver")
        )
        self._session = self._meta.call(CALL_SECONDS, NamespaceMethods.open_session, "bench").session
        stack.callback(self._meta.call, CALL_SECONDS, NamespaceMethods.close_session, self._session)
        self._sequence = 0
        self._blocks = 0
        self._contents = {size: os.urandom(size) for size in SIZES}
        self._alone: dict[int, list[BlockRecord]] = {size: [] for size in SIZES}
        """What the first data server has, by size."""
        self._voted: dict[int, list[BlockRecord]] = {size: [] for size in SIZES}
        """What was put by quorum, by size."""
        self._ino = self._create(b"commits")

    def renew(self) -> None:
        """Keep the session alive for one more row."""
        self._meta.call(CALL_SECONDS, BookkeepingMethods.renew, self._session)

    def rows(self) -> list[Call]:
        """Return all rows; later ones read what earlier ones stored, so they are done in this order."""
        return [*self._data_server_rows(), *self._mediator_rows(), *self._metadata_rows()]

    def _data_server_rows(self) -> Iterator[Call]:
        for size in SIZES:
            for durable in (False, True):
                prepare = partial(self._new_block, size, self._alone[size])
                words = f"put {_size(size)}{_durable(durable)}"
                yield Call("data server", words, prepare, partial(self._put, durable), _is_none)
        for size in SIZES:
            chosen = partial(_one_of, self._alone[size])
            yield Call("data server", f"get {_size(size)}", chosen, self._get, _is_whole)
        for size in SIZES:
            chosen = partial(_one_of, self._alone[size])
            yield Call("data server", f"vote on {_size(size)}", chosen, self._vote, _is_witness)

    def _mediator_rows(self) -> Iterator[Call]:
        for size in SIZES:
            prepare = partial(self._new_block, size, self._voted[size])
            yield Call("mediator", f"put {_size(size)} by quorum, durable", prepare, self._put_all, _is_none)
        for size in SIZES:
            chosen = partial(_one_of, self._voted[size])
            yield Call("mediator", f"voted read of {_size(size)}", chosen, self._read, _is_whole)

    def _metadata_rows(self) -> Iterator[Call]:
        layer = "metadata server"
        yield Call(layer, "create a file", lambda number: b"file-%d" % number, self._create, _is_inode)
        yield Call(
            layer, "look up a name", lambda _: b"commits", self._look_up, lambda _, found: len(found) == 1
        )
        for durable in (False, True):
            prepare = partial(self._new_commit, durable)
            words = f"commit a block{_durable(durable)}"
            yield Call(layer, words, prepare, self._commit, lambda commit, size: size >= commit.extend_to)

    # The calls

    def _put(self, durable: bool, block: tuple[BlockRecord, bytes]) -> None:
        record, data = block
        self._data.call(CALL_SECONDS, DataMethods.put, record.block, record.digest, data, durable)

    def _get(self, record: BlockRecord) -> BlockPart:
        return self._data.call(CALL_SECONDS, DataMethods.get, record.block, 0, 0)

    def _vote(self, record: BlockRecord) -> bytes:
        return self._data.call(CALL_SECONDS, DataMethods.digest, record.block, 0, 0)

    def _put_all(self, block: tuple[BlockRecord, bytes]) -> None:
        record, data = block
        self._mediator.call(CALL_SECONDS, MediatorMethods.put_block, record.block, record.digest, data, True)

    def _read(self, record: BlockRecord) -> BlockPart:
        return self._mediator.call(CALL_SECONDS, MediatorMethods.read_block, self._ino, record, 0, 0)

    def _create(self, name: bytes) -> int:
        mode = stat.S_IFREG | 0o644
        parameters = (ROOT_INODE, name, mode, os.getuid(), os.getgid(), 0, b"", False)
        return self._meta.call(CALL_SECONDS, NamespaceMethods.create, self._ticket(), *parameters).ino

    def _look_up(self, name: bytes) -> list[Attributes]:
        return self._meta.call(CALL_SECONDS, NamespaceMethods.resolve, ROOT_INODE, [name])

    def _commit(self, commit: Commit) -> int:
        ticket = self._ticket()
        return self._meta.call(CALL_SECONDS, BookkeepingMethods.commit, ticket, self._ino, commit).size

    # What they need

    def _new_block(self, size: int, kept: list[BlockRecord], _number: int) -> tuple[BlockRecord, bytes]:
        """Return a block that is like no other one, and note it in `kept`."""
        self._blocks += 1
        data = self._blocks.to_bytes(8, "big") + self._contents[size][8:]
        block = self._session.to_bytes(8, "big") + self._blocks.to_bytes(8, "big")
        kept.append(BlockRecord(block, size, block_digest(data)))
        return kept[-1], data

    def _new_commit(self, durable: bool, number: int) -> Commit:
        """Return the commit of one more block at the end of a file; the metadata server asks for no bytes."""
        size = SIZES[0]
        record, _ = self._new_block(size, [], number)
        extents = [Extent(number * size, size, record.block, 0)]
        return Commit(None, extents, (number + 1) * size, [record], AttributeChanges(), durable)

    def _ticket(self) -> Ticket:
        self._sequence += 1
        return Ticket(self._session, 0, self._sequence)


def _one_of(records: list[BlockRecord], number: int) -> BlockRecord:
    return records[number % len(records)]


def _is_none(_needed: Any, answer: Any) -> bool:
    return answer is None


def _is_whole(record: BlockRecord, part: BlockPart) -> bool:
    return part_matches(record.digest, record.length, 0, part.piece_digests, part.data)


def _is_witness(record: BlockRecord, vote: bytes) -> bool:
    return vote == record.digest


def _is_inode(_name: bytes, ino: int) -> bool:
    return ino > ROOT_INODE


def _size(size: int) -> str:
    return bytes_text(size).replace(".0 ", " ")


def _durable(durable: bool) -> str:
    return ", durable" if durable else ""
