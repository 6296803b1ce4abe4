"""How far the metadata is: kept by data servers, and carried back to the metadata server at each start."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataserver.marks import MILESTONES_NAME, MOST_DATABASES, Milestones
from tests.unit.mediator_fakes import World, run
from wire.errors import BadRequest, Busy, NoSpace
from wire.messages import Milestone
from wire.quorum import Quorum


def test_a_data_server_keeps_the_highest_of_each_database(tmp_path: Path) -> None:
    kept = Milestones(tmp_path)
    for number in (3, 5, 4):
        kept.keep(Milestone("one", number))
    kept.keep(Milestone("two", 1))
    assert Milestones(tmp_path).all() == kept.all() == [("one", 5), ("two", 1)]
    for k in range(MOST_DATABASES):
        kept.keep(Milestone("one", 6 + k))
        kept.keep(Milestone(f"more {k}", 1))
    assert len(kept.all()) == MOST_DATABASES
    assert Milestone("one", 5 + MOST_DATABASES) in Milestones(tmp_path).all()
    for wrong in (Milestone("", 1), Milestone("one", -1), Milestone("x" * 100, 1)):
        with pytest.raises(BadRequest):
            kept.keep(wrong)


@pytest.mark.parametrize(
    "damage", [b"", b"[1]", b"{}", b'{"milestones": {"one": "x"}}', b'{"milestones": {"one": 1}}', b"\xff"]
)
def test_a_damaged_note_is_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / MILESTONES_NAME).write_bytes(damage)
    kept = Milestones(tmp_path)
    assert kept.all() == []
    kept.keep(Milestone("one", 1))
    assert Milestones(tmp_path).all() == [("one", 1)]


def test_no_bit_that_is_wrong_makes_a_milestone_another_one(tmp_path: Path) -> None:
    """One that is too high would have the metadata server end all sessions, and hold itself for outdated."""
    Milestones(tmp_path).keep(Milestone("one", 2))
    right = (tmp_path / MILESTONES_NAME).read_bytes()
    for bit in range(8 * len(right)):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        (tmp_path / MILESTONES_NAME).write_bytes(wrong)
        assert Milestones(tmp_path).all() in ([], [("one", 2)]), bytes(wrong)


def test_milestones_are_kept_once_enough_servers_were_asked() -> None:
    async def scenario() -> None:
        world = World(Quorum(5, 3, 3))
        milestones = world.mediator.milestones
        world.meta.milestone = Milestone("mine", 7)
        for number in (3, 4, 5):
            world.data[number].down = True
        await world.look()
        await milestones.run_once()
        assert world.meta.compared[-1] == ([Milestone("", 0)], False)
        assert not world.data[1].kept
        world.data[3].down = False
        world.data[2].fail_next["keep_milestone"] = [NoSpace()]
        await world.look()
        await milestones.run_once()
        assert world.meta.compared[-1][1]
        assert [len(world.data[number].kept) for number in (1, 2, 3)] == [1, 0, 1]
        await milestones.run_once()
        await milestones.run_once()
        assert [len(world.data[number].kept) for number in (1, 2, 3)] == [1, 1, 1]
        assert milestones.status() == {"number": 7, "kept": 3}
        compared = len(world.meta.compared)
        world.meta.epoch += 1
        world.meta.fail_next["take_milestone"] = [Busy()]
        await world.look()
        with pytest.raises(Busy):
            await milestones.run_once()
        await milestones.run_once()
        assert len(world.meta.compared) > compared, "a metadata server that was started anew is told again"
        assert Milestone("mine", 7) in world.meta.compared[-1][0]
        await world.mediator.stop()

    run(scenario())


def test_an_older_database_is_told_before_anything_is_deleted_for_it() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        record = world.commit(b"newer")
        del world.meta.committed[record.block]
        world.data[2].kept = [Milestone("fake", 5)]
        await world.mediator.health.first_look()
        for server in world.mediator.health.up:
            world.mediator.refills.begin(server, whole=True)
        with pytest.raises(TimeoutError):
            await world.settle_within(5.0)
        assert world.meta.compared[-1] == ([Milestone("", 0), Milestone("fake", 5)], True)
        assert "collectable" not in world.meta.calls
        assert all(server.is_good(record) for server in world.data.values())
        world.meta.milestone = Milestone("fake", 2**45)
        world.meta.uncommitted.add(record.block)  # behind the fence
        world.meta.epoch += 1
        await world.look()
        assert all(server.is_good(record) for server in world.data.values())
        assert "collectable" in world.meta.calls
        await world.mediator.stop()

    run(scenario())
