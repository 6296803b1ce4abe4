"""One suite over {MessagePack-RPC, XML-RPC} x {asyncio, blocking client} x {TCP, Unix socket}."""

from __future__ import annotations

import inspect
import random
import time
import typing
import xmlrpc.client
from collections.abc import Iterator
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
    make_caller,
    sample,
)
from wire import methods
from wire.address import parse_address
from wire.blocking_links import JUST_WAITING, XmlSocket
from wire.client import Client
from wire.config import Encoding
from wire.errors import (
    BY_FAULT_CODE,
    BadRequest,
    InternalError,
    MessageTooLarge,
    ReadRefused,
    Unavailable,
    UnknownMethod,
)
from wire.messages import Attributes, BlockPart, BlockRecord, Identity
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods, LabMethods, NamespaceMethods
from wire.server import Server
from wire.table import methods_of

TABLES: list[type] = [getattr(methods, name) for name in methods.__all__]


EVERY_METHOD = [(table, name) for table in TABLES for name in sorted(methods_of(table))]


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
    assert not names.calls  # refused by whom it was passed on to
    caller.close()
    loop.run(onward.close())
    loop.run(front.drain())
    behind.drain()


@pytest.mark.parametrize("path", ["", "/", "/RPC2"])
def test_a_stock_xml_rpc_client(loop: LoopThread, path: str) -> None:
    running = RunningServer(loop, "127.0.0.1:0", CommonMethods, DataMethods, LabMethods)
    common, data, lab = (running.implementations[table] for table in (CommonMethods, DataMethods, LabMethods))
    common.answers["identity"] = Identity("dataserver", "c", 1, 2**62)
    common.answers["status"] = {"a": [None, 2**40, -1.5, b"\0\xff"]}
    data.answers["inventory"] = [BlockRecord(EVERY_BYTE, 2**33, b"d")]
    lab.answers["corrupt"] = "one bit flipped"
    stock = xmlrpc.client.ServerProxy(
        f"http://{running.address}{path}", allow_none=True, use_builtin_types=True
    )
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


def test_many_calls_in_one_have_a_bounded_answer(loop: LoopThread) -> None:
    running = RunningServer(loop, "127.0.0.1:0", DataMethods)
    data = running.implementations[DataMethods]
    data.answers["quarantine_read"] = bytes(1024 * 1024)
    client = XmlSocket(parse_address(running.address), 2.0, JUST_WAITING, time.monotonic() + 60)
    calls = [{"methodName": "quarantine_read", "params": ["a"]}] * 100
    try:
        answers = client.call(time.monotonic() + 60, "system.multicall", [calls])
        whole = [answer for answer in answers if answer == [bytes(1024 * 1024)]]
        assert len(answers) == 100 and len(whole) == 8
        assert {answer["faultCode"] for answer in answers[8:]} == {MessageTooLarge.fault_code}
        assert client.call(time.monotonic() + 60, "quarantine_read", ["a"]) == bytes(1024 * 1024)
    finally:
        client.close()
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
