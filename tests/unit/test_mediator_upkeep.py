"""Who is up, explain, refusals and background work, over pure functions and in-memory servers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mediator.health import misplaced, writable
from mediator.refusals import Refusals
from mediator.servers import Server
from tests.unit.mediator_fakes import CLUSTER, SILENCE_SECONDS, run, world
from wire.errors import (
    Unavailable,
    WriteRefused,
)
from wire.messages import Identity, Usage
from wire.methods import CommonMethods
from wire.quorum import Quorum


def test_a_server_that_is_not_the_one_expected_is_not_used() -> None:
    right = Identity("dataserver", CLUSTER, 2, 1)
    assert misplaced(right, "dataserver", CLUSTER, 2) == ""
    assert "data server 2, not 3" in misplaced(right, "dataserver", CLUSTER, 3)
    assert "'other'" in misplaced(right._replace(cluster="other"), "dataserver", CLUSTER, 2)
    assert "a dataserver answers" in misplaced(right, "metaserver", CLUSTER, 0)

    async def scenario() -> None:
        async with world(3, 2, 3) as w:
            w.data[2].cluster = "other"
            await w.look()
            server = w.mediator.health.servers[1]
            assert server.state == "down"
            assert "'other'" in server.error
            with pytest.raises(WriteRefused):
                await w.mediator.write_path.check_writable()

    run(scenario())


@pytest.mark.parametrize(
    ("hosts", "hint"),
    [
        (("127.0.0.1", "127.0.0.1"), "Start them again with `quorumfs up`; "),
        (("10.77.0.1", "127.0.0.1"), "Start them again with `quorumfs up`; "),
        (("127.0.0.1", "10.77.0.2"), "Start each again on its own machine, by its unit of systemd or with "),
    ],
)
def test_who_may_be_on_another_machine_is_not_to_be_started_by_up(hosts: tuple[str, ...], hint: str) -> None:
    servers = [Server(n, f"{host}:{n}", lambda *_: None) for n, host in enumerate(hosts, 1)]  # type: ignore[arg-type,return-value]
    servers[0].up = True
    is_writable, why = writable(Quorum(2, 1, 2), servers)
    assert not is_writable
    assert hint in why
    assert "until then files can only be read" in why


def test_a_short_silence_is_forgiven_and_a_broken_connection_is_not() -> None:
    async def scenario() -> None:
        async with world() as w:
            health, server = w.mediator.health, w.mediator.health.servers[0]
            w.data[1].paused = True
            await health.run_once(server, SILENCE_SECONDS / 10)
            assert server.up
            await health.run_once(server, SILENCE_SECONDS)
            assert not server.up
            w.data[1].paused = False
            await health.run_once(server)
            assert server.up
            w.data[1].down = True
            with pytest.raises(Unavailable):
                await server.call(1.0, CommonMethods.identity)
            assert server.state == "down"
            await w.settle()

    run(scenario())


def test_silence_is_counted_from_the_last_answer_of_any_call() -> None:
    async def scenario() -> None:
        async with world() as w:
            health, server = w.mediator.health, w.mediator.health.servers[0]
            for _ in range(3):
                w.data[1].paused = True
                await health.run_once(server, SILENCE_SECONDS / 10)
                late = asyncio.create_task(health.run_once(server, SILENCE_SECONDS))
                await asyncio.sleep(SILENCE_SECONDS / 10)
                server.answered = asyncio.get_running_loop().time()  # as any other call's answer tells
                await late
                assert server.up
            w.data[1].paused = False
            await w.settle()

    run(scenario())


def test_the_log_tells_when_a_server_goes_and_comes_once_each(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.settle()
            server = w.mediator.health.servers[0]
            caplog.clear()
            w.data[1].down = True
            for _ in range(3):
                await w.mediator.health.run_once(server)
            w.data[1].down = False
            for _ in range(2):
                await w.mediator.health.run_once(server)
            await w.settle()

    with caplog.at_level("INFO", "mediator.servers"):
        run(scenario())
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "INFO"]
    assert "data server 1 (" in told[0][1] and ") is down: " in told[0][1]
    assert told[1][1].endswith(") is up")


@pytest.mark.parametrize("wrong", [{}, {"free_bytes": 1}, {"free_bytes": "all", "total_bytes": -1}])
def test_a_server_that_does_not_tell_its_room_is_left_out(wrong: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[2].status = lambda: wrong  # type: ignore[method-assign]
            await w.mediator.room.look()
            assert await w.mediator.explainer.usage() == Usage(1995, 10**9 - 5, 10, 7)

    run(scenario())


def test_explain_and_usage() -> None:
    async def scenario() -> None:
        async with world() as w:
            first, second = w.commit(b"1234"), w.commit(b"56")
            w.data[1].damage(first.block)
            w.data[2].delete([first.block])
            w.data[3].down = True
            w.mediator.refusals.note(7, "read", WriteRefused("because"))
            said = await w.mediator.explainer.explain(7)
            assert said["paths"] == ["/a.txt", "/\\xff"]
            assert said["quorum"] == {"N": 5, "Qr": 3, "Qw": 5}
            assert said["last_refusal"]["message"] == "because"
            assert not said["cut"]
            blocks = said["blocks"]
            assert [block["block"] for block in blocks] == [first.block.hex(), second.block.hex()]
            assert [block["offset"] for block in blocks] == [0, 4]
            votes = {"1": "corrupt", "2": "missing", "3": "down", "4": "good", "5": "good"}
            assert blocks[0]["verdicts"] == votes
            assert (blocks[0]["outcome"], blocks[1]["outcome"]) == ("fill", "answer")
            assert await w.mediator.explainer.usage() == Usage(1995, 10**9 - 5, 10, 7)
            status = await w.mediator.status()
            assert [server["state"] for server in status["servers"]] == ["up", "up", "down", "up", "up"]
            assert not status["writable"]
            assert status["servers"][0]["blocks"] == 2
            assert status["metaserver"]["state"] == "up"

    run(scenario())


def test_explaining_a_long_file_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.explain.MOST_BLOCKS", 3)

    async def scenario() -> None:
        async with world(3, 2, 3) as w:
            for _ in range(3):
                w.commit()
            said = await w.mediator.explainer.explain(7)
            assert (len(said["blocks"]), said["cut"]) == (3, False)
            w.commit()
            said = await w.mediator.explainer.explain(7)
            assert (len(said["blocks"]), said["cut"]) == (3, True)

    run(scenario())


def test_refusals_are_bounded() -> None:
    refusals = Refusals(most=2)
    for ino in (1, 2, 1, 3):
        refusals.note(ino, "read", WriteRefused(f"no {ino}"))
    assert refusals.last(2) is None
    assert [said["ino"] for said in refusals.newest()] == [3, 1]
    assert refusals.count == 4


def test_the_background_lets_nothing_run_on_after_the_stop() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.mediator.start()
            assert len(w.mediator.background) >= 3
        assert len(w.mediator.background) == 0

    run(scenario())
