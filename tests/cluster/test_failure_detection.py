"""One data server fails in each way of a network or a machine: how long calls take, and that it returns.

Reads are answered by the others; with Qw = N writes fail within their deadline, and the next ones at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import pytest

from tests.cluster.quorum_client import connected
from tests.cluster.relay import DELAYS_SECONDS, Relay, RelayedCluster
from tests.conftest import ClusterFactory
from tests.support import wait_until
from wire.config import Deadlines
from wire.errors import QuorumfsError

DEADLINES = Deadlines(vote_seconds=1.0, silence_seconds=3.0, connect_seconds=1.0)
READ_SECONDS = 1.0
"""Another server is asked for the bytes after half a second at the latest; the rest is for a busy machine."""
WRITE_SECONDS = DEADLINES.vote_seconds + 1.0
AT_ONCE_SECONDS = 0.75
"""A refusal looks again at the server that is down, a quarter of a second long."""
READS = 8

BATCH = 40
"""So many reads show who sends bytes: more than it takes to try a slow server once."""

SUSPECTED = ("hung", "very slow", "deaf", "mute", "half-open", "refused", "reset", "garbage")
LATER = ("very slow", "deaf")
"""Told in `make test-long` only."""


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return a call's result, or its error, and how long it took, in seconds."""
    begun = time.monotonic()
    try:
        result = call(*arguments)
    except QuorumfsError as error:
        result = error
    return result, time.monotonic() - begun


def succeeds(call: Callable[..., Any], *arguments: Any) -> bool:
    """Tell whether a call raised nothing."""
    return not isinstance(timed(call, *arguments)[0], QuorumfsError)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[pytest.mark.long] if fault in LATER else [])
        for fault in [*SUSPECTED, "slow"]
    ],
)
def test_one_server_fails_and_returns(make_cluster: ClusterFactory, fault: Any) -> None:
    made = make_cluster()
    with Relay(made.address("data-1")) as relay:
        cluster = RelayedCluster(made, relay, DEADLINES)
        with connected(cluster) as client:
            data = bytes(range(256)) * 1000
            ino, _ = client.make("read", data)
            other = client.create("written")
            if fault == "hung":
                cluster.pause("data-1")
            else:
                relay.begin(fault)
            reads = [timed(client.read, ino) for _ in range(READS)]
            assert [result == data for result, _ in reads] == [True] * READS
            assert max(seconds for _, seconds in reads) < READ_SECONDS, reads
            first, seconds = timed(client.write, other, b"first")
            assert seconds < WRITE_SECONDS, first
            if fault == "slow":
                assert not isinstance(first, QuorumfsError), first
            elif fault != "half-open":  # which is over as soon as it is noticed
                client.await_states("down", 1, deadline_seconds=8.0)
                for _ in range(3):
                    refused, seconds = timed(client.write, other, b"refused")
                    assert isinstance(refused, QuorumfsError)
                    assert seconds < AT_ONCE_SECONDS, refused
                result, seconds = timed(client.read, ino)
                assert (result == data, seconds < READ_SECONDS) == (True, True)
            if fault == "hung":
                cluster.resume("data-1")
            elif fault != "half-open":  # there the fault goes on: the frozen connection must be given up
                relay.begin("")
            else:
                wait_until(lambda: succeeds(client.write, other, b"again"), 12.0, "a write succeeds again")
            client.await_states("up", deadline_seconds=12.0)
            client.write(other, b"last")
            assert client.read(other) == b"last"
            client.await_all_good(ino)
            client.await_all_good(other)


def test_a_slow_server_is_not_asked_for_bytes_until_it_is_fast_again(make_cluster: ClusterFactory) -> None:
    made = make_cluster()
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(made.address("data-1")))
        client = stack.enter_context(connected(RelayedCluster(made, relay, DEADLINES)))
        data = bytes(range(256)) * 200
        ino, _ = client.make("read", data)

        def sent_in_a_batch() -> int:
            """Return how many of a batch of reads had their bytes from data server 1."""
            before = relay.answered_bytes
            reads = [timed(client.read, ino) for _ in range(BATCH)]
            assert [result == data for result, _ in reads] == [True] * BATCH
            assert max(seconds for _, seconds in reads) < READ_SECONDS, reads
            assert median(seconds for _, seconds in reads) < DELAYS_SECONDS["slow"], reads
            return (relay.answered_bytes - before) // len(data)

        wait_until(lambda: sent_in_a_batch() > 4, 20.0, "it sends its share of the bytes")
        relay.begin("slow")
        wait_until(lambda: sent_in_a_batch() <= 2, 20.0, "it is asked for bytes only to try it")
        relay.begin("")
        wait_until(lambda: sent_in_a_batch() > 4, 20.0, "it sends its share of the bytes again")
