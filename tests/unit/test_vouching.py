"""Who vouches for the blocks that were committed last before a start of the metadata server, and when."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.mediator_fakes import VOTE_SECONDS, run, world


def test_inventories_are_compared_when_metadata_server_and_mediator_were_killed() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            record = w.commit()
            w.data[2].delete([record.block])
            w.meta.complete = False
            for server in w.mediator.health.servers:
                w.mediator.refills.came_up(server)
            await w.settle()
            assert w.data[2].is_good(record)
            assert w.meta.complete

    run(scenario())


@pytest.mark.parametrize(
    ("others", "vouches"), [((), True), (("127.0.0.1:9",), False)], ids=["the only one", "one of two"]
)
def test_only_the_only_mediator_vouches_after_a_restart_of_the_metadata_server(
    others: tuple[str, ...], vouches: bool
) -> None:
    """Another one that was killed with it knew of puts that nobody else does."""

    async def scenario() -> None:
        async with world(5, 3, 3, more_mediators=others) as w:
            w.mediator.refills.came_up(w.mediator.health.servers[0])
            await w.settle()
            w.meta.complete = False
            w.mediator.refills.metadata_came_up()
            await w.settle()
            assert w.meta.complete is vouches

    run(scenario())


def test_a_second_restart_of_the_metadata_server_puts_off_what_is_vouched_for() -> None:
    """Puts that are open at the second one may have begun after the first."""

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.mediator.refills.came_up(w.mediator.health.servers[0])
            await w.settle()
            for _ in range(2):
                w.meta.complete = False
                w.mediator.refills.metadata_came_up()
                await asyncio.sleep(1.5 * VOTE_SECONDS)
                assert not w.meta.complete
            await w.settle()
            assert w.meta.complete

    run(scenario())


def test_nothing_is_vouched_for_to_a_database_that_is_found_to_be_older_meanwhile() -> None:
    """Of what it was told before, it knows nothing: who is down now may lack more than lags by it."""

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.mediator.refills.came_up(w.mediator.health.servers[0])
            await w.settle()
            w.data[5].down = True
            await w.look()
            w.meta.complete = False
            w.mediator.refills.metadata_came_up()
            w.mediator.refills.distrust()
            await w.settle()
            assert not w.meta.complete
            w.data[5].down = False
            await w.look()
            assert w.meta.complete, "all were compared"

    run(scenario())


def test_nothing_is_vouched_for_to_an_older_database_that_nobody_told_of() -> None:
    """It was found out by another mediator, or the answer that told so was lost."""

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.mediator.refills.came_up(w.mediator.health.servers[0])
            await w.settle()
            w.data[5].down = True
            w.meta.complete, w.meta.found_older_ns = False, 7
            w.meta.epoch += 1
            await w.look()
            assert not w.meta.complete
            w.data[5].down = False
            await w.look()
            assert w.meta.complete, "all were compared"
            w.meta.complete = False
            w.meta.epoch += 1
            await w.look()
            assert w.meta.complete, "it was heeded"

    run(scenario())


def test_a_comparison_with_what_was_known_before_a_restart_does_not_count() -> None:
    async def scenario() -> None:
        async with world(1, 1, 1) as w:
            w.commit()
            w.meta.complete = False

            def restart() -> None:
                w.meta.on_blocks = lambda: None
                w.mediator.refills.metadata_came_up()

            w.meta.on_blocks = restart
            w.mediator.refills.came_up(w.mediator.health.servers[0])
            await w.settle()
            assert not w.meta.complete
            w.mediator.refills.begin(w.mediator.health.servers[0], whole=True)
            await w.settle()
            assert w.meta.complete

    run(scenario())
