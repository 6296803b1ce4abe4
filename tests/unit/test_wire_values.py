"""Addresses, backing off, quorums, errors and fault details: what the wire decides without I/O."""

from __future__ import annotations

import errno
import random

import pytest

from wire.address import TcpAddress, UnixAddress, is_of_one_machine, parse_address
from wire.backoff import FIRST_SECONDS, LONGEST_SECONDS, Backoff
from wire.config import ConfigError
from wire.errors import BY_FAULT_CODE, InternalError, QuorumfsError, from_fault, to_fault
from wire.fault_detail import LONGEST_BYTES, pack_detail, unpack_detail
from wire.quorum import Quorum


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("localhost:65535", TcpAddress("localhost", 65535)),
        ("[::1]:7000", TcpAddress("::1", 7000)),
        ("unix:/run/q/meta", UnixAddress("/run/q/meta")),
        ("unix:relative:1", UnixAddress("relative:1")),
    ],
)
def test_an_address_is_parsed_and_written_back(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/a", True),
        ("10.77.0.1:1", False),
        ("[fd00::1]:1", False),
        ("one.example:1", False),
    ],
)
def test_whether_other_machines_reach_an_address(text: str, expected: bool) -> None:
    assert is_of_one_machine(text) is expected


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":1", "host:x", "host:65536", "host:-1", "unix:", "unix:" + "a" * 108]
)
def test_an_odd_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


def test_backing_off_doubles_to_its_bound_and_differs_between_clients() -> None:
    least = Backoff(uniform=lambda low, high: low)
    most = Backoff(uniform=lambda low, high: high)
    lows = [least.next_seconds() for _ in range(10)]
    highs = [most.next_seconds() for _ in range(10)]
    assert highs[:4] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS, 8 * FIRST_SECONDS]
    assert highs[-1] == LONGEST_SECONDS
    assert [2 * low for low in lows] == highs
    assert (
        Backoff(random.Random(1).uniform).next_seconds() != Backoff(random.Random(2).uniform).next_seconds()
    )


def test_every_quorum_for_one_to_seven_servers() -> None:
    """The whole table, against the definition: every read quorum meets every write quorum."""
    for servers in range(1, 8):
        works = 0
        for read in range(-1, servers + 2):
            for write in range(-1, servers + 2):
                meets = 1 <= read <= servers and 1 <= write <= servers and read + write > servers
                try:
                    Quorum(servers, read, write)
                except ValueError as error:
                    assert not meets
                    assert "\n" not in str(error)
                else:
                    assert meets
                    works += 1
        assert works == servers * (servers + 1) // 2
    with pytest.raises(ValueError, match="at least one"):
        Quorum(0, 0, 0)


def test_a_refused_quorum_names_the_settings_that_would_work() -> None:
    with pytest.raises(ValueError, match="raise Qr to 3 or Qw to 4"):
        Quorum(5, 2, 3)
    Quorum(5, 3, 3)
    Quorum(5, 2, 4)


def test_every_error_survives_the_wire_in_both_directions() -> None:
    classes = [QuorumfsError]
    for kind in classes:
        classes += kind.__subclasses__()
    ours = [kind for kind in classes if kind.__module__ == "wire.errors"]
    assert len(ours) == len(BY_FAULT_CODE), "two errors share a fault code"
    for kind in ours:
        back = from_fault(*to_fault(kind("why", {"votes": [1]})))
        assert type(back) is kind
        assert (back.message, back.detail, str(back)) == ("why", {"votes": [1]}, "why")
        assert kind.errno in errno.errorcode
    assert type(from_fault(31337, "from a newer release")) is InternalError


def test_a_detail_passes_through_a_header() -> None:
    detail = {"votes": {"1": "good"}, "text": "é\r\n\0\ud800", "n": [None, 2**63 - 1]}
    line = pack_detail(detail)
    assert line.isascii() and line.isprintable()
    assert unpack_detail(line) == detail
    long = pack_detail({"text": "x" * LONGEST_BYTES})
    assert len(long) < 100 and "omitted_bytes" in unpack_detail(long)
    for odd in (None, "", "{", "[1]", "[" * 10000, "1" * LONGEST_BYTES * 2):
        assert unpack_detail(odd) == {}
