"""What a state means for the user: the word, the reason, the advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.cluster import ProcessStatus
from tools.health import Health, assess
from tools.processes import State
from wire.quorum import Quorum

QUORUM = Quorum(3, 2, 3)
NAMES = ["mediator", "metaserver", "data-1", "data-2", "data-3", "mount-1"]


def processes(**states: State) -> list[ProcessStatus]:
    given = {name.replace("_", "-"): state for name, state in states.items()}
    return [ProcessStatus(name, given.get(name, "running"), 1, f"at {name}") for name in NAMES]


def mediator(*states: str) -> dict[str, Any]:
    writable = "down" not in states
    servers = [{"number": number, "state": state} for number, state in enumerate(states, 1)]
    return {
        "writable": writable,
        "reason": "" if writable else "2 of 3 are up",
        "no_room": "",
        "servers": servers,
        "metaserver": {"state": "up", "error": ""},
        "metadata_copies": {"failures": 0, "error": ""},
    }


def test_all_is_well() -> None:
    assert assess(QUORUM, processes(), mediator("up", "up", "up")) == Health("healthy", True, "", [])


def test_nothing_runs() -> None:
    states: dict[str, State] = {name.replace("-", "_"): "down" for name in NAMES}
    health = assess(QUORUM, processes(**states), None)
    assert health.word == "down"
    assert health.advice == ["start the cluster with: quorumfs up"]


@pytest.mark.parametrize(
    ("state", "command"), [("down", "quorumfs fault restart 2"), ("paused", "quorumfs fault resume 2")]
)
def test_a_server_is_lacking(state: State, command: str) -> None:
    health = assess(QUORUM, processes(data_2=state), mediator("up", "down", "up"))
    assert (health.word, health.writable, health.reason) == ("degraded", False, "2 of 3 are up")
    assert command in health.advice[0]


@pytest.mark.parametrize(
    "states", [{"data_2": "down"}, {"data_2": "paused"}, {"mount_1": "down"}, {"mediator": "down"}]
)
def test_advice_can_be_typed_as_it_is(states: dict[str, State]) -> None:
    status = None if "mediator" in states else mediator("up", "down", "up")
    pages = {"damaged": True, "damaged_pages": [7], "found": "", "checked_at": 0.0}
    health = assess(QUORUM, processes(**states), status, {"pages": pages}, Path("my state"))
    assert len(health.advice) == 2
    assert all("--state 'my state'" in line for line in health.advice)
    assert health.advice[1].count("quorumfs ") == health.advice[1].count("--state 'my state'") == 3


def test_refilling_is_degraded_and_writable() -> None:
    assert assess(QUORUM, processes(), mediator("up", "refilling", "up"))[:2] == ("degraded", True)


def test_what_writes_need_more_than_there_is_room_for_is_not_writable() -> None:
    no_room = "no room is left on data server 2, and Qw=3 of 3 must take a write"
    status = mediator("up", "up", "up") | {"no_room": no_room}
    status["servers"][1]["full"] = True
    health = assess(QUORUM, processes(), status)
    assert (health.word, health.writable, health.reason) == ("degraded", False, no_room)
    assert "data-2 is full" in health.advice[0]


def test_a_full_data_server_that_is_not_needed_is_told() -> None:
    status = mediator("up", "up", "up")
    status["servers"][1]["full"] = True
    health = assess(QUORUM, processes(), status)
    assert (health.word, health.writable) == ("degraded", True)
    assert "data-2 is full" in health.advice[0]


def test_a_full_metadata_server_is_not_writable() -> None:
    health = assess(QUORUM, processes(), mediator("up", "up", "up"), {"no_room": "its disk is full"})
    assert (health.word, health.writable, health.reason) == ("degraded", False, "its disk is full")


def test_without_the_metadata_server_nothing_is_writable() -> None:
    status = mediator("up", "up", "up") | {"metaserver": {"state": "down", "error": "refused"}}
    health = assess(QUORUM, processes(metaserver="down"), status)
    assert (health.word, health.writable) == ("degraded", False)
    assert "the metadata server is down (refused)" in health.reason


def test_the_mediator_is_lacking() -> None:
    health = assess(QUORUM, processes(mediator="down"), None)
    assert (health.word, health.writable, health.reason) == ("degraded", False, "the mediator is down")
    assert "quorumfs fault restart mediator" in health.advice[0]


def test_the_mediator_hangs() -> None:
    health = assess(QUORUM, processes(), None)
    assert health.word == "degraded"
    assert "does not answer" in health.reason
    assert health.advice


def test_a_mount_has_ended() -> None:
    health = assess(QUORUM, processes(mount_1="down"), mediator("up", "up", "up"))
    assert health.word == "degraded"
    assert "quorumfs up 'at mount-1'" in health.advice[0]


def test_a_damaged_metadata_database_is_told_with_what_to_do() -> None:
    pages = {"damaged": True, "damaged_pages": [7, 12], "found": "", "checked_at": 0.0}
    health = assess(QUORUM, processes(), mediator("up", "up", "up"), {"pages": pages})
    assert health[:2] == ("degraded", True)
    assert "pages: 7, 12" in health.advice[0] and "restore" in health.advice[0]
    logged = pages | {"damaged_log_pages": [3]}
    health = assess(QUORUM, processes(), mediator("up", "up", "up"), {"pages": logged})
    assert "log of the metadata database" in health.advice[0] and "its pages: 3" in health.advice[0]
    assert health[1:3] == (False, "the log of the metadata database is damaged")
    failed = {"pages": {"damaged": False, "log_failure": "Input/output error"}}
    health = assess(QUORUM, processes(), mediator("up", "up", "up"), failed)
    assert "Input/output error" in health.advice[0] and "fault restart metaserver" in health.advice[0]
    assert "restore" not in health.advice[0]
    assert health[1:3] == (False, "the metadata server's disk failed")
    whole = {"pages": pages | {"damaged": False, "damaged_pages": [], "log_failure": None}}
    assert assess(QUORUM, processes(), mediator("up", "up", "up"), whole).word == "healthy"


def test_a_metadata_server_whose_disk_takes_no_change_is_told_with_what_to_do() -> None:
    failing = {"pages": {"damaged": False, "log_failure": None}, "disk_failure": "disk I/O error"}
    health = assess(QUORUM, processes(), mediator("up", "up", "up"), failing)
    assert health[:3] == ("degraded", False, "the metadata server's disk failed")
    (advice,) = health.advice
    assert "disk I/O error" in advice and "fault restart metaserver" in advice
    assert assess(QUORUM, processes(), mediator("up", "up", "up"), failing | {"disk_failure": None})[:2] == (
        "healthy",
        True,
    )


def test_a_metadata_database_that_was_removed_is_told_with_what_to_do() -> None:
    displaced = {"pages": {"damaged": False, "log_failure": None}, "displaced": "meta.sqlite was removed"}
    health = assess(QUORUM, processes(), mediator("up", "up", "up"), displaced)
    assert health[:2] == ("degraded", False)
    assert "removed" in health.reason
    assert health.advice == ["every change is refused: meta.sqlite was removed"]
    in_place = displaced | {"displaced": ""}
    assert assess(QUORUM, processes(), mediator("up", "up", "up"), in_place).word == "healthy"


def test_a_data_server_whose_disk_failed_is_told_with_what_to_do() -> None:
    said = mediator("up", "up", "up")
    said["servers"][1]["disk_failure"] = "Input/output error"
    health = assess(QUORUM, processes(), said)
    assert health[:2] == ("degraded", True)
    (advice,) = health.advice
    assert "data-2" in advice and "Input/output error" in advice and "fault restart 2" in advice


def test_copies_of_the_metadata_that_fail_again_and_again_are_told() -> None:
    said = mediator("up", "up", "up")
    said["metadata_copies"] = {"failures": 1, "error": "why"}
    assert assess(QUORUM, processes(), said).word == "healthy"
    said["metadata_copies"] = {"failures": 3, "error": "why"}
    health = assess(QUORUM, processes(), said)
    assert (health.word, health.writable) == ("degraded", True)
    assert "why" in health.advice[0]
