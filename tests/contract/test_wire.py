"""One suite over {MessagePack-RPC, XML-RPC} x {asyncio, blocking client} x {TCP, Unix socket}."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
import time
import typing
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.wire_support import (
    EVERY_BYTE,
    IDENTITY,
    INTEGERS,
    AsyncCaller,
    Caller,
    LogLines,
    LoopThread,
    RunningServer,
    loop_thread,
    make_caller,
    sample,
)
from tests.support import wait_until
from wire import methods
from wire.blocking import BlockingClient
from wire.client import Client
from wire.client_msgpack import REFUSED_SECONDS, MsgpackLink
from wire.config import Encoding
from wire.errors import (
    BY_FAULT_CODE,
    BadRequest,
    DeadlineExceeded,
    InternalError,
    MessageTooLarge,
    ReadRefused,
    TransportError,
    Unavailable,
    UnknownMethod,
)
from wire.messages import Attributes, BlockPart, BlockRecord, Identity
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods, LabMethods, NamespaceMethods
from wire.server import Server
from wire.server_msgpack import MOST_CALLS_IN_FLIGHT
from wire.table import methods_of

TABLES: list[type] = [getattr(methods, name) for name in methods.__all__]


EVERY_METHOD = [(table, name) for table in TABLES for name in sorted(methods_of(table))]


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    with loop_thread() as running:
        yield running


@pytest.fixture
def log() -> Iterator[LogLines]:
    handler = LogLines()
    logging.getLogger("wire").addHandler(handler)
    yield handler
    logging.getLogger("wire").removeHandler(handler)


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/socket"


@pytest.fixture(params=["msgpack", "xml"])
def rpc(request: pytest.FixtureRequest) -> Encoding:
    return typing.cast(Encoding, request.param)


@pytest.fixture(params=["async", "blocking"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(loop: LoopThread, address: str) -> Iterator[RunningServer]:
    running = RunningServer(loop, address, CommonMethods, DataMethods, LabMethods)
    yield running
    running.drain()


@pytest.fixture
def caller(kind: str, loop: LoopThread, server: RunningServer, rpc: Encoding) -> Iterator[Caller]:
    made = make_caller(kind, loop, server.address, rpc)
    yield made
    made.close()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_method_carries_what_it_is_given(
    table: type, kind: str, loop: LoopThread, address: str, rpc: Encoding
) -> None:
    seed = random.Random(f"{table.__name__} 1")
    running = RunningServer(loop, address, table)
    caller = make_caller(kind, loop, running.address, rpc)
    implementation = running.implementations[table]
    try:
        for name in sorted(methods_of(table)) * 5:
            function = getattr(table, name)
            hints = typing.get_type_hints(function)
            parameters = list(inspect.signature(function).parameters)[1:]
            arguments = tuple(sample(hints[parameter], seed) for parameter in parameters)
            implementation.answers[name] = answer = sample(hints["return"], seed)
            result = caller.call(10, function, *arguments)
            assert implementation.calls[name] == arguments, name
            assert all(map(same_types, implementation.calls[name], arguments)), name
            assert result == answer and same_types(result, answer), name
    finally:
        caller.close()
        running.drain()


def same_types(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return all(map(same_types, left, right))
    return not isinstance(left, dict) or all(same_types(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize(("table", "name"), EVERY_METHOD, ids=lambda value: getattr(value, "__name__", value))
def test_both_encodings_give_the_same_plain_answer(table: type, name: str, loop: LoopThread) -> None:
    seed = random.Random(name)
    running = RunningServer(loop, "127.0.0.1:0", table)
    hints = typing.get_type_hints(getattr(table, name))
    params = [
        plain(sample(hints[p], seed)) for p in list(inspect.signature(getattr(table, name)).parameters)[1:]
    ]
    running.implementations[table].answers[name] = sample(hints["return"], seed)
    answers, calls = [], []
    for rpc in typing.get_args(Encoding):
        caller = AsyncCaller(loop, running.address, rpc)
        answers.append(caller.forward(name, params))
        calls.append(running.implementations[table].calls.pop(name))
        caller.close()
    running.drain()
    assert answers[0] == answers[1] and same_types(answers[0], answers[1])
    assert calls[0] == calls[1] and same_types(calls[0], calls[1])


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def test_64_bit_integers_and_every_byte(caller: Caller, server: RunningServer) -> None:
    data = server.implementations[DataMethods]
    for value in INTEGERS:
        data.answers["count"] = value
        assert caller.call(5, DataMethods.count) == value
        data.answers["get"] = BlockPart(value, EVERY_BYTE, EVERY_BYTE * 5000)
        assert caller.call(5, DataMethods.get, EVERY_BYTE, value, 0) == data.answers["get"]
        assert data.calls["get"] == (EVERY_BYTE, value, 0)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64, 2**80])
def test_a_larger_integer_is_refused(value: int, caller: Caller, server: RunningServer) -> None:
    with pytest.raises(BadRequest):
        caller.call(5, DataMethods.get, b"", value, 0)
    server.implementations[DataMethods].answers["count"] = 4
    assert caller.call(5, DataMethods.count) == 4


@pytest.mark.parametrize(
    "arguments", [(), (b"",), (b"", "1", 0), (b"", True, 0), (b"", 1.0, 0), (None, 0, 0)]
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], caller: Caller, log: LogLines) -> None:
    with pytest.raises(BadRequest, match="get"):
        caller.call(5, DataMethods.get, *arguments)
    assert not log.tracebacks()


def test_defaults_are_honoured_and_names_understood(caller: Caller, server: RunningServer) -> None:
    lab = server.implementations[LabMethods]
    lab.answers["corrupt"] = "done"
    caller.call(5, LabMethods.corrupt, "00ff")
    assert lab.calls["corrupt"] == ("00ff",)
    caller.call(5, LabMethods.corrupt, key="00ff", kind="zeros")
    assert lab.calls["corrupt"] == ("00ff", "zeros")
    with pytest.raises(BadRequest):
        caller.call(5, LabMethods.corrupt, "00ff", size=3)


def test_every_error_arrives_as_what_it_was(caller: Caller, server: RunningServer) -> None:
    data = server.implementations[DataMethods]
    for kind_of_error in BY_FAULT_CODE.values():
        detail = {"votes": {"1": "good", "2": None}, "n": [1, 2**63 - 1, "é\n"]}
        data.answers["count"] = kind_of_error("what is wrong: <é>\nand why", detail)
        with pytest.raises(kind_of_error) as caught:
            caller.call(5, DataMethods.count)
        assert type(caught.value) is kind_of_error
        assert caught.value.message == "what is wrong: <é>\nand why"
        assert caught.value.detail == detail


def test_a_defect_is_an_internal_error_and_one_traceback(
    caller: Caller, server: RunningServer, log: LogLines
) -> None:
    server.implementations[DataMethods].answers["count"] = object()  # cannot cross the wire
    with pytest.raises(InternalError):
        caller.call(5, DataMethods.count)
    assert len(log.tracebacks()) == 1


def test_an_unknown_method_is_told(caller: Caller) -> None:
    with pytest.raises(UnknownMethod, match="renew"):
        caller.call(5, BookkeepingMethods.renew, 1)


def test_a_message_that_is_too_large(kind: str, loop: LoopThread, address: str, rpc: Encoding) -> None:
    running = RunningServer(loop, address, DataMethods, max_message_bytes=100_000)
    caller = make_caller(kind, loop, running.address, rpc)
    with pytest.raises((MessageTooLarge, Unavailable)):
        caller.call(5, DataMethods.put, b"", b"", bytes(200_000), False)
    caller.call(5, DataMethods.put, b"", b"", bytes(60_000), False)
    assert running.implementations[DataMethods].calls["put"][2] == bytes(60_000)
    caller.close()
    running.drain()


class Slow:
    """Answers after as many milliseconds as it is asked for, or never (-1)."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.now = self.most_at_once = 0

    async def renew(self, session: int) -> int:
        self.begun.append(session)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await (asyncio.sleep(session / 1000) if session >= 0 else asyncio.Event().wait())
        finally:
            self.now -= 1
        return session


def slow_server(loop: LoopThread, address: str = "127.0.0.1:0", **options: Any) -> tuple[Slow, Server, str]:
    async def make() -> tuple[Slow, Server, str]:
        slow, server = Slow(), Server(IDENTITY, **options)
        server.register(BookkeepingMethods, slow, only=["renew"])
        return slow, server, await server.start(address)

    made: tuple[Slow, Server, str] = loop.run(make())
    return made


def test_answers_come_out_of_order(loop: LoopThread, address: str, rpc: Encoding) -> None:
    _, server, real = slow_server(loop, address)

    async def scenario() -> list[int]:
        client = Client(real, rpc)
        order: list[int] = []

        async def one(milliseconds: int) -> None:
            order.append(await client.call(5, BookkeepingMethods.renew, milliseconds))

        await asyncio.gather(*[one(number) for number in (300, 150, 1)])
        await client.close()
        await server.drain()
        return order

    assert loop.run(scenario()) == [1, 150, 300]


def test_many_more_calls_than_may_be_in_flight(loop: LoopThread, rpc: Encoding) -> None:
    slow, server, real = slow_server(loop)

    async def scenario() -> None:
        client = Client(real, rpc)
        calls = [client.call(20, BookkeepingMethods.renew, 20 + number % 7) for number in range(1500)]
        assert await asyncio.gather(*calls) == [20 + number % 7 for number in range(1500)]
        await client.close()
        await server.drain()

    loop.run(scenario())
    assert len(slow.begun) == 1500
    assert 1 < slow.most_at_once <= MOST_CALLS_IN_FLIGHT


def test_a_deadline_passes_and_the_connection_serves_on(kind: str, loop: LoopThread, rpc: Encoding) -> None:
    _, server, real = slow_server(loop)
    caller = make_caller(kind, loop, real, rpc)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        caller.call(0.15, BookkeepingMethods.renew, 600)
    assert time.monotonic() - begin < 0.6
    assert caller.call(5, BookkeepingMethods.renew, 1) == 1
    time.sleep(0.6)  # the late answer has come: it must not be taken for another call's
    assert caller.call(5, BookkeepingMethods.renew, 2) == 2
    caller.close()
    loop.run(server.drain())


def test_a_refused_connection_is_unavailable_at_once(
    kind: str, loop: LoopThread, rpc: Encoding, tmp_path: Path
) -> None:
    _, server, real = slow_server(loop)
    loop.run(server.drain())
    for gone in (real, f"unix:{tmp_path}/nothing"):
        caller = make_caller(kind, loop, gone, rpc)
        begin = time.monotonic()
        for _ in range(3):
            with pytest.raises(Unavailable):
                caller.call(5, BookkeepingMethods.renew, 1)
        assert time.monotonic() - begin < 4  # less than one deadline
        caller.close()


def test_calls_share_one_attempt_to_connect(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts: list[int] = []
    connect = MsgpackLink._connect

    def counted(link: MsgpackLink) -> Any:
        attempts.append(1)
        return connect(link)

    monkeypatch.setattr(MsgpackLink, "_connect", counted)

    async def scenario() -> None:
        client = Client(f"unix:{tmp_path}/nothing")
        for _ in range(20):  # at once together, then shortly after each other
            calls = [client.call(5, BookkeepingMethods.renew, 1) for _ in range(10)]
            failures = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(failure) for failure in failures] == [Unavailable] * 10
        await client.close()

    begin = time.monotonic()
    loop.run(scenario())
    assert len(attempts) <= 1 + (time.monotonic() - begin) / REFUSED_SECONDS


def test_a_restarted_server_is_found_again(kind: str, loop: LoopThread, address: str, rpc: Encoding) -> None:
    _, server, real = slow_server(loop, address)
    caller = make_caller(kind, loop, real, rpc)
    assert caller.call(5, BookkeepingMethods.renew, 1) == 1
    for _ in range(3):
        loop.run(server.drain())
        _, server, _ = slow_server(loop, real)
        assert caller.call(5, BookkeepingMethods.renew, 1) == 1  # the stale connection costs no error
    caller.close()
    loop.run(server.drain())


def test_a_broken_connection_fails_all_calls_in_flight(loop: LoopThread, rpc: Encoding) -> None:
    slow, server, real = slow_server(loop)
    told: list[bool] = []

    async def scenario() -> list[Any]:
        client = Client(real, rpc, on_disconnect=lambda: told.append(True))
        await client.call(5, BookkeepingMethods.renew, 1)
        assert client.connected
        calls = [asyncio.create_task(client.call(20, BookkeepingMethods.renew, -1)) for _ in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(slow.begun) == 11, 5, "all calls have begun")
        await server.drain(0.1)
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert not client.connected
        await client.close()
        return failures

    assert [type(failure) for failure in loop.run(scenario())] == [Unavailable] * 10
    assert told == [True]


def test_draining_finishes_what_is_in_flight(
    kind: str, loop: LoopThread, address: str, rpc: Encoding
) -> None:
    slow, server, real = slow_server(loop, address)
    caller = make_caller(kind, loop, real, rpc)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(caller.call(10, BookkeepingMethods.renew, 400)))
    thread.start()
    wait_until(lambda: slow.begun, 5, "the call has begun")
    loop.run(server.drain())
    thread.join(5)
    assert results == [400]
    with pytest.raises(Unavailable):
        caller.call(1, BookkeepingMethods.renew, 1)
    caller.close()


def test_the_blocking_client_sends_again_until_the_server_is_back(loop: LoopThread, rpc: Encoding) -> None:
    _, server, real = slow_server(loop)
    loop.run(server.drain())
    client = BlockingClient([real], rpc)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(client.call(10, BookkeepingMethods.renew, 5)))
    thread.start()
    time.sleep(0.3)  # some attempts fail
    assert not results
    _, server, _ = slow_server(loop, real)
    thread.join(5)
    assert results == [5]
    loop.run(server.drain())
    begin = time.monotonic()
    with pytest.raises(Unavailable):
        client.call(0.3, BookkeepingMethods.renew, 5)
    assert time.monotonic() - begin < 1
    client.close()


def test_the_blocking_client_tries_each_address(loop: LoopThread, rpc: Encoding, tmp_path: Path) -> None:
    _, server, real = slow_server(loop)
    client = BlockingClient([f"unix:{tmp_path}/nothing", real], rpc)
    assert client.call_once(5, BookkeepingMethods.renew, 3) == 3
    client.close()
    loop.run(server.drain())


def test_threads_share_a_blocking_client(loop: LoopThread, rpc: Encoding) -> None:
    _, server, real = slow_server(loop)
    client = BlockingClient([real], rpc)
    wrong: list[Any] = []

    def many(first: int) -> None:
        for number in range(first, first + 30):
            if client.call(10, BookkeepingMethods.renew, number % 5) != number % 5:
                wrong.append(number)

    threads = [threading.Thread(target=many, args=(index * 30,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    client.close()
    with pytest.raises(Unavailable):
        client.call_once(1, BookkeepingMethods.renew, 1)
    loop.run(server.drain())


def test_a_server_passes_calls_on(kind: str, loop: LoopThread, rpc: Encoding) -> None:
    behind = RunningServer(loop, "127.0.0.1:0", NamespaceMethods, DataMethods)
    names = behind.implementations[NamespaceMethods]
    onward = Client(behind.address, rpc)

    async def make() -> tuple[Server, str]:
        front = Server(IDENTITY)
        front.forward(
            NamespaceMethods, lambda name, params: onward.forward(5, name, params), exclude=["open"]
        )
        front.forward(DataMethods, lambda name, params: onward.forward(5, name, params))
        return front, await front.start("127.0.0.1:0")

    front, address = loop.run(make())
    caller = make_caller(kind, loop, address, rpc)
    names.answers["getattr"] = Attributes(*range(12))
    assert caller.call(5, NamespaceMethods.getattr, 7) == Attributes(*range(12))
    behind.implementations[DataMethods].answers["get"] = BlockPart(3, b"", EVERY_BYTE * 4096)
    assert caller.call(5, DataMethods.get, b"", 0, 0).data == EVERY_BYTE * 4096
    names.answers["getattr"] = ReadRefused("no", {"votes": {"1": "down"}})
    with pytest.raises(ReadRefused) as caught:
        caller.call(5, NamespaceMethods.getattr, 7)
    assert caught.value.detail == {"votes": {"1": "down"}}
    with pytest.raises(UnknownMethod):
        caller.call(5, NamespaceMethods.open, 1, 2, False)
    names.calls.clear()
    with pytest.raises(BadRequest):
        caller.call(5, NamespaceMethods.getattr, "x")
    assert not names.calls  # refused before it was passed on
    caller.close()
    loop.run(onward.close())
    loop.run(front.drain())
    behind.drain()


def test_a_stock_xml_rpc_client(loop: LoopThread) -> None:
    running = RunningServer(loop, "127.0.0.1:0", CommonMethods, DataMethods, LabMethods)
    common, data, lab = (running.implementations[table] for table in (CommonMethods, DataMethods, LabMethods))
    common.answers["identity"] = Identity("dataserver", "c", 1, 2**62)
    common.answers["status"] = {"a": [None, 2**40, -1.5, b"\0\xff"]}
    data.answers["inventory"] = [BlockRecord(EVERY_BYTE, 2**33, b"d")]
    lab.answers["corrupt"] = "one bit flipped"
    stock = xmlrpc.client.ServerProxy(f"http://{running.address}", allow_none=True, use_builtin_types=True)
    with stock:
        assert stock.identity() == ["dataserver", "c", 1, 2**62]
        assert stock.status() == common.answers["status"]
        assert stock.inventory("", 10) == [[EVERY_BYTE, 2**33, b"d"]]  # a str where bytes are meant
        assert data.calls["inventory"] == (b"", 10)
        assert stock.put(xmlrpc.client.Binary(EVERY_BYTE), b"d", b"x" * 500_000, True) is None
        assert data.calls["put"] == (EVERY_BYTE, b"d", b"x" * 500_000, True)
        assert stock.corrupt("00ff") == "one bit flipped"
        assert "corrupt" in stock.system.listMethods()
        assert stock.system.methodSignature("corrupt") == [
            ["string", "string"],
            ["string", "string", "string"],
        ]
        assert stock.system.methodHelp("count").startswith("Return how many blocks")
        data.answers["count"] = ReadRefused("too few", {"votes": {"1": "down"}})
        with pytest.raises(xmlrpc.client.Fault) as caught:
            stock.count()
        assert (caught.value.faultCode, caught.value.faultString) == (501, "too few")
        with pytest.raises(xmlrpc.client.Fault) as caught:
            stock.nothing()
        assert caught.value.faultCode == UnknownMethod.fault_code
        many = xmlrpc.client.MultiCall(stock)
        many.identity()
        many.corrupt("11", "zeros")
        many.count()
        answers = many()
        assert answers[0] == ["dataserver", "c", 1, 2**62]
        assert answers[1] == "one bit flipped"
        with pytest.raises(xmlrpc.client.Fault):
            answers[2]
        assert (
            stock.system.multicall([{"methodName": "system.multicall", "params": [[]]}])[0]["faultCode"]
            == 201
        )
    running.drain()


def test_a_table_is_checked_at_registration(loop: LoopThread) -> None:
    class Lacking:
        def identity(self) -> None: ...

    class Different(Lacking):
        def status(self, more: int) -> None: ...

    class Doubled(Lacking):
        def status(self) -> None: ...

    async def make() -> Server:
        return Server(IDENTITY)

    server: Server = loop.run(make())
    for wrong in (Lacking(), Different()):
        with pytest.raises(TypeError, match="status"):
            server.register(CommonMethods, wrong, only=["status"])
    server.register(CommonMethods, Doubled())
    with pytest.raises(TypeError, match="twice"):
        server.register(CommonMethods, Doubled())


def test_a_call_that_comes_while_draining_may_be_sent_again(loop: LoopThread, rpc: Encoding) -> None:
    slow, server, real = slow_server(loop)

    async def scenario() -> None:
        client = Client(real, rpc)
        first = asyncio.create_task(client.call(10, BookkeepingMethods.renew, 300))
        await asyncio.to_thread(wait_until, lambda: slow.begun, 5, "the call has begun")
        drained = asyncio.create_task(server.drain())
        await asyncio.sleep(0.05)  # every connection has been told
        with pytest.raises(TransportError) as caught:
            await client.call(10, BookkeepingMethods.renew, 1)
        assert caught.value.temporary
        assert await first == 300
        await drained
        await client.close()

    loop.run(scenario())
    assert slow.begun == [300]
