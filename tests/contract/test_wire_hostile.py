"""What misbehaves on a server's port is refused, with one line in the log, and harms no one else."""

from __future__ import annotations

import base64
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator

import msgpack
import pytest

from tests.contract.wire_support import AsyncCaller, LogLines, LoopThread, RunningServer
from tests.support import wait_until
from wire.methods import DataMethods

REQUEST_SECONDS = 0.4
MAX_MESSAGE_BYTES = 100_000


@pytest.fixture(scope="module")
def server(loop: LoopThread) -> Iterator[RunningServer]:
    running = RunningServer(
        loop,
        "127.0.0.1:0",
        DataMethods,
        max_message_bytes=MAX_MESSAGE_BYTES,
        request_seconds=REQUEST_SECONDS,
    )
    running.implementations[DataMethods].answers["count"] = 4
    yield running
    running.drain()


@pytest.fixture(autouse=True)
def another_connection_goes_on(loop: LoopThread, server: RunningServer, log: LogLines) -> Iterator[None]:
    """A well-behaved client of each encoding keeps its connection throughout each test; no tracebacks."""
    told: list[str] = []
    callers = [
        AsyncCaller(loop, server.address, rpc, on_disconnect=lambda: told.append("lost"))
        for rpc in ("msgpack", "xml")
    ]
    for caller in callers:
        assert caller.call(5, DataMethods.count) == 4
    yield
    for caller in callers:
        assert caller.call(5, DataMethods.count) == 4
        caller.close()
    assert not told
    assert not log.tracebacks()


def until_closed(raw: socket.socket) -> bytes:
    """Return what still comes until the server closes the connection. A time-out fails the test."""
    received = b""
    try:
        while chunk := raw.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    finally:
        raw.close()
    return received


def post(body: bytes, *headers: str, path: str = "/RPC2", content_type: str = "text/xml") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def call(params: str, method: str = "count", prolog: str = "<?xml version='1.0'?>") -> bytes:
    text = f"{prolog}<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"
    return text.encode()


def exchange(server: RunningServer, data: bytes) -> bytes:
    """Send bytes, ask for the end of the connection after the answer, return all that came."""
    raw = server.connect()
    try:
        raw.sendall(data)
    except OSError:
        pass  # the server may close before it has read everything
    return until_closed(raw)


GARBAGE = {
    "not MessagePack-RPC": b"\x00\x01\x02",
    "lower case": b"get / http/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "reserved byte": b"\x94\xc1\xc1\xc1\xc1",
    "a notification": msgpack.packb([2, "count", [], None]),
    "an answer": msgpack.packb([1, 1, None, 4]),
    "a text as id": msgpack.packb([0, "1", "count", []]),
    "a negative id": msgpack.packb([0, -1, "count", []]),
    "an id of 33 bit": msgpack.packb([0, 2**32, "count", []]),
    "five parts later": msgpack.packb([0, 1, "count", []]) + msgpack.packb([0, 1, "count", [], 5]),
    "an integer later": msgpack.packb([0, 1, "count", []]) + b"\x07",
    "an extension type": msgpack.packb([0, 1, "count", [msgpack.ExtType(5, b"x")]]),
    "a timestamp": b"\x94\x00\x01\xa5count\x91\xd6\xff\x00\x00\x00\x01",
    "a huge array": b"\x94\x00\x01\xa5count\xdd\xff\xff\xff\xff",
    "a huge map": b"\x94\x00\x01\xa5count\xdf\xff\xff\xff\xff",
    "a huge text": b"\x94\x00\x01\xdb\xff\xff\xff\xff" + bytes(MAX_MESSAGE_BYTES),
    "huge bytes": b"\x94\x00\x01\xa5count\x91\xc6\xff\xff\xff\xff" + bytes(MAX_MESSAGE_BYTES),
    "a text that is no UTF-8": b"\x94\x00\x01\xa2\xff\xfe\x90",
    "an integer as a key": msgpack.packb([0, 1, "count", [{1: 2}]]),
    "a list as a key": b"\x94\x00\x01\xa5count\x91\x81\x90\x01",
    "deep nesting": b"\x94\x00\x01\xa5count" + b"\x91" * 5000 + b"\x00",
    "more than a message may have": b"\x94\x00\x01\xa5count\xdc\x10\x00"
    + (b"\xc5\xff\xff" + bytes(65535)) * 3,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_closes_its_connection(name: str, server: RunningServer, log: LogLines) -> None:
    exchange(server, GARBAGE[name])
    assert log.count("closed a") == 1
    assert log.count("half a request") == 0  # closed for what it is, not by the time-out


ANNOUNCED = {
    "bytes": b"\x94\x00\x01\xa3put\x91\xc6\xff\xff\xff\xff",
    "bytes, a little more than there may be": b"\x94\x00\x01\xa3put\x91\xc6"
    + struct.pack(">I", MAX_MESSAGE_BYTES),
    "bytes after others": b"\x94\x00\x01\xa3put\x93"
    + (b"\xc6" + struct.pack(">I", 40_000) + bytes(40_000)) * 2
    + b"\xc6"
    + struct.pack(">I", 40_000),
    "a text": b"\x94\x00\x01\xdb\xff\xff\xff\xff",
    "an array": b"\x94\x00\x01\xa5count\xdd\xff\xff\xff\xff",
    "a map": b"\x94\x00\x01\xa5count\xdf\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", ANNOUNCED)
def test_what_is_only_announced_is_refused_at_once(name: str, server: RunningServer, log: LogLines) -> None:
    raw = server.connect()
    whole_call = msgpack.packb([0, 1, "count", []])
    raw.sendall(whole_call + ANNOUNCED[name])
    until_closed(raw)
    assert log.count("closed a MessagePack-RPC connection") == 1
    assert log.count("half a request") == 0  # closed for what it announces, not by the time-out


def test_nested_arrays_cost_no_memory(server: RunningServer) -> None:
    # Each header announces many items that never come.
    exchange(server, b"\x94\x00\x01\xa5count" + b"\xdd\x00\x00\xff\xff" * 1000 + b"\xc1")


def test_a_whole_request_with_wrong_contents_is_answered(server: RunningServer) -> None:
    raw = server.connect()
    unpacker = msgpack.Unpacker()
    wrong = [
        [0, 1, 5, []],
        [0, 2, "count", {}],
        [0, 3, "nothing", []],
        [0, 4, "count", [[[[1]]]]],
        [0, 5, "get", [b"", {}, 1]],
    ]
    raw.sendall(b"".join(msgpack.packb(message) for message in wrong) + msgpack.packb([0, 6, "count", []]))
    answers = []
    while len(answers) < 6:
        unpacker.feed(raw.recv(65536))
        answers += list(unpacker)
    raw.close()
    assert [(answer[1], answer[2] and answer[2][0]) for answer in sorted(answers, key=lambda a: a[1])] == [
        (1, 201),
        (2, 201),
        (3, 202),
        (4, 201),
        (5, 201),
        (6, None),
    ]


POST_XML = b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n"
HALVES = {
    "nothing at all": b"",
    "MessagePack-RPC": msgpack.packb([0, 1, "count", []])[:-3],
    "MessagePack-RPC after a whole one": msgpack.packb([0, 1, "count", []]) + b"\x94\x00",
    "HTTP request line": b"POST /RPC2 HT",
    "HTTP headers": b"POST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\n",
    "HTTP body": post(call(""))[:-10],
    "HTTP chunks": POST_XML + b"Transfer-Encoding: chunked\r\n\r\n5\r\n<?xml\r\n",
}


@pytest.mark.parametrize("name", HALVES)
def test_half_a_request_ends_at_the_time_out(name: str, server: RunningServer, log: LogLines) -> None:
    begin = time.monotonic()
    exchange(server, HALVES[name])
    assert REQUEST_SECONDS * 0.9 < time.monotonic() - begin < REQUEST_SECONDS * 8
    assert log.count("closed a") == 1


@pytest.mark.parametrize(
    "data", [msgpack.packb([0, 1, "count", [b"x" * 100]]), post(call(""), "X: " + "y" * 100)]
)
def test_a_request_byte_by_byte_ends_at_the_time_out(data: bytes, server: RunningServer) -> None:
    raw = server.connect()
    begin = time.monotonic()
    with pytest.raises(OSError):  # whichever way the connection ends
        for byte in data:
            raw.sendall(bytes([byte]))
            time.sleep(0.02)
            if time.monotonic() - begin > 5:
                break
    raw.close()
    assert time.monotonic() - begin < REQUEST_SECONDS * 8


@pytest.mark.parametrize("request_of", [lambda: msgpack.packb([0, 1, "count", []]), lambda: post(call(""))])
def test_an_idle_connection_that_made_a_request_stays(
    request_of: Callable[[], bytes], server: RunningServer
) -> None:
    raw = server.connect()
    for _ in range(2):
        raw.sendall(request_of())
        assert raw.recv(65536)
        time.sleep(REQUEST_SECONDS * 2)
    raw.close()


LAUGHS = "<!DOCTYPE l [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;'>]>"
XML = "<?xml version='1.0'?>"
HOSTILE_XML = {
    "a DTD": call("", prolog=XML + "<!DOCTYPE x>"),
    "a billion laughs": call("<param><value>&c;</value></param>", prolog=XML + LAUGHS),
    "an external entity": call(
        "<param><value>&x;</value></param>",
        prolog=XML + "<!DOCTYPE x [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>",
    ),
    "an external DTD": call("", prolog=XML + "<!DOCTYPE x SYSTEM 'http://127.0.0.1:1/x.dtd'>"),
    "a parameter entity": call(
        "", prolog=XML + "<!DOCTYPE x [<!ENTITY % p SYSTEM 'file:///etc/passwd'> %p;]>"
    ),
    "an unknown entity": call("<param><value>&x;</value></param>"),
    "a processing instruction": call("", prolog=XML + "<?php x?>"),
    "another encoding": call("", prolog="<?xml version='1.0' encoding='utf-16'?>"),
    "bytes that are no UTF-8": call("<param><value>A</value></param>").replace(b"A", b"\xff"),
    "an extension type": call(
        "<param><value><ex:i8 xmlns:ex='http://ws.apache.org/xmlrpc/namespaces/extensions'>1</ex:i8>"
        "</value></param>"
    ),
    "an undeclared prefix": call("<param><value><ex:nil/></value></param>"),
    "deep nesting": call(
        "<param>" + "<value><array><data>" * 1000 + "</data></array></value>" * 1000 + "</param>"
    ),
    "deep unknown nesting": b"<methodCall>" + b"<a>" * 10000,
    "many attributes": call("<param " + " ".join(f"a{n}='1'" for n in range(5000)) + "/>"),
    "an attribute": call("<param><value type='int'>1</value></param>"),
    "two values": call("<param><value/><value/></param>"),
    "text between elements": call("<param>x<value/></param>"),
    "text in an array": call("<param><value><array><data>x</data></array></value></param>"),
    "no method name": b"<methodCall><params/></methodCall>",
    "an answer": b"<methodResponse><params><param><value/></param></params></methodResponse>",
    "HTML": b"<html><body/></html>",
    "nothing": b"",
    "half": call("")[:-5],
    "more after the end": call("") + b"<x/>",
    "a NUL": call("<param><value>\0</value></param>"),
    "a long integer": call(f"<param><value><int>{'9' * 10000}</int></value></param>"),
    "an integer of 33 bit": call("<param><value><int>4294967296</int></value></param>"),
    "an integer of 65 bit": call("<param><value><i8>9223372036854775808</i8></value></param>"),
    "an integer with a line": call("<param><value><int>1_0</int></value></param>"),
    "an odd boolean": call("<param><value><boolean>true</boolean></value></param>"),
    "an odd double": call("<param><value><double>0x1p3</double></value></param>"),
    "a long double that ends oddly": call(f"<param><value><double>{'1' * 90_000}x</double></value></param>"),
    "a long fraction that ends oddly": call(
        f"<param><value><double>{'1' * 45_000}.{'1' * 45_000}x</double></value></param>"
    ),
    "odd base64": call("<param><value><base64>AAA*A===</base64></value></param>"),
    "a member without a name": call(
        "<param><value><struct><member><value/></member></struct></value></param>"
    ),
    "a member with two names": call(
        "<param><value><struct><member><name>a</name><name>b</name><value/></member></struct></value></param>"
    ),
    "a full nil": call("<param><value><nil>1</nil></value></param>"),
    **{
        f"<{kind}>": call(f"<param><value><{kind}>1</{kind}></value></param>")
        for kind in ("i1", "i2", "float", "bigdecimal", "biginteger", "dateTime.iso8601", "long", "bytes")
    },
}


@pytest.mark.parametrize("name", HOSTILE_XML)
def test_hostile_xml_is_refused(name: str, server: RunningServer, log: LogLines) -> None:
    answer = exchange(server, post(HOSTILE_XML[name]))
    assert b"<name>faultCode</name><value><int>201</int>" in answer, answer
    assert b"root:" not in answer
    assert log.count("refused an XML-RPC request") == 1


def test_too_many_elements_are_refused(loop: LoopThread) -> None:
    roomy = RunningServer(loop, "127.0.0.1:0", DataMethods)
    answer = exchange(
        roomy,
        post(
            call("<param><value><array><data>" + "<value/>" * 1_000_001 + "</data></array></value></param>")
        ),
    )
    assert b"too many elements" in answer
    roomy.drain()


NOT_XML_RPC = {
    "an Origin": (post(call(""), "Origin: http://evil.example"), 403),
    "a null Origin": (post(call(""), "Origin: null"), 403),
    "a form": (post(call(""), content_type="application/x-www-form-urlencoded"), 415),
    "plain text": (post(call(""), content_type="text/plain"), 415),
    "no type": (post(call(""), content_type=""), 415),
    "compressed": (post(call(""), "Content-Encoding: gzip"), 415),
    "another path": (post(call(""), path="/elsewhere"), 404),
    "another method": (b"PUT /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
    "a preflight": (b"OPTIONS /RPC2 HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\n\r\n", 403),
    "too long": (POST_XML + b"Content-Length: 99999999\r\n\r\n", 413),
    "too long in chunks": (
        POST_XML
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"c350\r\n" + b" " * 50000 + b"\r\n") * 3
        + b"0\r\n\r\n",
        413,
    ),
    "a negative length": (POST_XML + b"Content-Length: -5\r\n\r\n", 400),
    "length and chunks": (
        POST_XML + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "garbage after a letter": (b"GARBAGE %s %d {} \xff\xfe\r\n\r\n", 400),
    "a long line": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 400),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n", 400),
    "a long header": (b"GET / HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", NOT_XML_RPC)
def test_a_request_that_is_none_of_ours_is_refused(name: str, server: RunningServer, log: LogLines) -> None:
    data, status = NOT_XML_RPC[name]
    calls = server.implementations[DataMethods].calls
    calls.clear()
    answer = exchange(server, data)
    line = answer.partition(b"\r\n")[0]
    # A peer that is still sending may miss the answer.
    assert f" {status} ".encode() in line or (not answer and status in (400, 413)), answer
    assert not calls
    assert len(log.records) == 1


def test_a_short_page_tells_what_this_is(server: RunningServer) -> None:
    answer = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"quorumfs dataserver 3 of cluster contract" in answer


def test_a_client_that_asks_before_it_sends(server: RunningServer) -> None:
    raw = server.connect()
    head, _, body = post(call(""), "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
    raw.sendall(head + b"\r\n\r\n")
    assert raw.recv(100).startswith(b"HTTP/1.1 100 ")
    raw.sendall(body)
    assert b"<int>4</int>" in until_closed(raw)


def test_a_peer_that_does_not_read_stops_being_read(loop: LoopThread) -> None:
    roomy = RunningServer(loop, "127.0.0.1:0", DataMethods)
    data = roomy.implementations[DataMethods]
    data.answers["digest"] = bytes(1024 * 1024)
    raw = roomy.connect()
    raw.settimeout(1)
    request = msgpack.packb([0, 1, "digest", [b"x" * 1000, 0, 0]])
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 100_000_000:
            sent += raw.send(request * 100)
    raw.close()
    roomy.drain()


def test_a_server_bounds_its_connections(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, log: LogLines
) -> None:
    monkeypatch.setattr("wire.server.MOST_CONNECTIONS", 5)
    small = RunningServer(loop, "127.0.0.1:0", DataMethods)
    kept = [small.connect() for _ in range(5)]
    wait_until(lambda: len(small.server.connections) == 5, 5, "five connections")
    assert until_closed(small.connect()) == b""
    assert log.count("more than 5 connections") == 1
    for raw in kept:
        raw.close()
    wait_until(lambda: len(small.server.connections) == 0, 5, "all closed")
    raw = small.connect()
    raw.sendall(msgpack.packb([0, 1, "count", []]))
    assert raw.recv(100)
    raw.close()
    small.drain()


def mutate(data: bytes, seed: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(seed.randrange(1, 6)):
        place = seed.randrange(len(changed) + 1)
        choice = seed.randrange(4)
        if choice == 0:
            changed[place:place] = seed.randbytes(seed.randrange(1, 9))
        elif choice == 1:
            del changed[place : place + seed.randrange(1, 9)]
        elif choice == 2:
            changed[place : place + 4] = struct.pack(">I", seed.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
        else:
            changed[place : place + 1] = bytes([seed.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize("seed_number", range(4))
def test_random_damage(seed_number: int, server: RunningServer) -> None:
    print(f"seed {seed_number}")
    seed = random.Random(seed_number)
    block = base64.b64encode(bytes(range(256))).decode()
    member = "<member><name>a</name><value><i8>5</i8></value></member>"
    whole = [
        msgpack.packb([0, 7, "put", [b"k" * 16, b"d" * 32, bytes(range(256)), True]]),
        msgpack.packb([0, 7, "delete", [[b"a", b"b", b"c"]]]) * 3,
        post(call(f"<param><value><base64>{block}</base64></value></param>" * 3, "put")),
        post(call("<param><value><array><data><value>a</value></data></array></value></param>", "delete")),
        post(call(f"<param><value><struct>{member}</struct></value></param>")),
    ]
    for _ in range(60):
        raw = server.connect()
        raw.sendall(mutate(seed.choice(whole), seed))
        raw.shutdown(socket.SHUT_WR)
        until_closed(raw)
