"""Answers that are too long, too slow, compressed or broken off: a call ends, in time and with its error."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from contextlib import suppress

import pytest

from tests.contract.wire_support import LoopThread, make_caller
from wire import blocking_links, client_xml
from wire.errors import DeadlineExceeded, QuorumfsError, Unavailable
from wire.methods import BookkeepingMethods


class Flood:
    """What says that it is a server, and answers so much; `sent` is how much of that was taken."""

    def __init__(
        self,
        *headers: str,
        piece: bytes = b" " * 65536,
        pieces: int = 1_000_000,
        pause_seconds: float = 0.0,
        stays: bool = True,
        in_head: bool = False,
    ) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.sent = 0
        end = ("X-More: ",) if in_head else ("", "")
        self._head = "\r\n".join(("HTTP/1.1 200 OK", "Content-Type: text/xml", *headers, *end)).encode()
        self._piece, self._pieces, self._pause_seconds = piece, pieces, pause_seconds
        self._stays = stays
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connected, _ = self._listening.accept()
        with connected, suppress(OSError):
            connected.recv(65536)
            connected.sendall(self._head)
            for _ in range(self._pieces):
                connected.sendall(self._piece)
                self.sent += len(self._piece)
                time.sleep(self._pause_seconds)
            if self._stays:
                connected.recv(1)

    def close(self) -> None:
        self._thread.join(5)
        self._listening.close()


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_an_answer_without_end_is_not_kept(
    kind: str, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (client_xml, blocking_links):
        monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 100_000)
    flood = Flood()
    caller = make_caller(kind, loop, flood.address, "xml")
    with pytest.raises(Unavailable):
        caller.call(2, BookkeepingMethods.renew, 1)
    caller.close()
    flood.close()
    assert flood.sent < 32 * 1024 * 1024


def test_a_compressed_answer_is_not_unfolded(loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes would become as many megabytes, before anybody could count them."""
    monkeypatch.setattr(client_xml, "MAX_ANSWER_BYTES", 100_000)
    body = gzip.compress(bytes(16 * 1024 * 1024))
    flood = Flood("Content-Encoding: gzip", f"Content-Length: {len(body)}", piece=body, pieces=1)
    caller = make_caller("async", loop, flood.address, "xml")
    with pytest.raises(QuorumfsError, match="not XML-RPC"):
        caller.call(5, BookkeepingMethods.renew, 1)
    caller.close()
    flood.close()


@pytest.mark.parametrize("in_head", [False, True])
@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_an_answer_that_trickles_in_ends_at_the_deadline(kind: str, in_head: bool, loop: LoopThread) -> None:
    flood = Flood(piece=b"x", pieces=40, pause_seconds=0.05, in_head=in_head)
    caller = make_caller(kind, loop, flood.address, "xml")
    with pytest.raises(DeadlineExceeded):
        caller.call(0.3, BookkeepingMethods.renew, 1)
    assert flood.sent < 40, "it is not waited for to the end"
    caller.close()
    flood.close()


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_half_an_answer_is_a_broken_connection(kind: str, loop: LoopThread) -> None:
    """The call may be sent again."""
    flood = Flood("Content-Length: 1000", piece=b"<?xml version='1.0'?>", pieces=1, stays=False)
    caller = make_caller(kind, loop, flood.address, "xml")
    with pytest.raises(Unavailable):
        caller.call(5, BookkeepingMethods.renew, 1)
    caller.close()
    flood.close()
