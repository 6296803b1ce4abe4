"""A caller that was itself stopped (SIGSTOP, a paused machine) finds the answers that came meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.contract.wire_support import LoopThread, slow_server
from tests.support import ROOT, wait_until
from wire.config import Encoding

CALL_SECONDS = 1.0
PROGRAM = """
import sys
import uvloop
from wire.blocking import BlockingClient
from wire.client import Client
from wire.methods import BookkeepingMethods

kind, address, seconds, rpc = sys.argv[1:]
if kind == "async":
    async def call():
        client = Client(address, rpc)
        answer = await client.call(float(seconds), BookkeepingMethods.renew, 100)
        await client.close()
        return answer
    print(uvloop.run(call()))
else:
    print(BlockingClient([address], rpc).call(float(seconds), BookkeepingMethods.renew, 100))
"""


def test_an_answer_that_came_while_its_caller_was_stopped_is_not_late(
    loop: LoopThread, kind: str, address: str, rpc: Encoding
) -> None:
    """A mediator that was stopped for longer than a vote may take failed the writes that were under way."""
    slow, server, real = slow_server(loop, address)
    caller = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind, real, str(CALL_SECONDS), rpc],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: slow.begun, 20.0, "the call has begun")
    caller.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, caller.pid, os.WSTOPPED)
    time.sleep(CALL_SECONDS)  # its deadline passes
    wait_until(lambda: not slow.now, 20.0, "it was answered")
    caller.send_signal(signal.SIGCONT)
    answer, complaint = caller.communicate(timeout=20.0)
    assert answer == "100\n", complaint
    loop.run(server.drain())
