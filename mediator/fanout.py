"""Sending one call to many servers and watching the answers come in. Thin I/O; decides nothing.

For use on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from mediator.servers import Server
from mediator.vote import Progress
from wire.errors import InternalError, QuorumfsError
from wire.request import Then

R = TypeVar("R")
log = logging.getLogger("mediator")


class Background:
    """Work that goes on after its caller was answered. What fails is counted and logged once, here."""

    def __init__(self) -> None:
        self.failed = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, R], name: str) -> asyncio.Task[R]:
        """Run `work`, keeping hold of it until it ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.failed += 1
        if isinstance(error, QuorumfsError):
            log.warning("%s: %s", task.get_name(), error.message)
        else:
            log.error("%s: a defect", task.get_name(), exc_info=error)

    async def stop(self) -> None:
        """Cancel what still runs; all of it may be done again by whoever runs next."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def survive(work: Coroutine[Any, Any, None], name: str) -> None:
    """Do one turn of a loop that must not end: a defect is logged, and the next turn comes."""
    try:
        await work
    except Exception:
        log.exception("%s: a defect; it goes on", name)


async def outcome_of(call: Awaitable[R]) -> R | QuorumfsError:
    """Return a call's error as a value: one server's failure is an answer, not the end of a fan-out."""
    try:
        return await call
    except QuorumfsError as error:
        return error
    except Exception as error:
        log.exception("a call to a server failed in an unforeseen way")
        return InternalError(str(error))


async def until_decided(
    servers: Iterable[Server],
    begin: Callable[[Server, Then], None],
    progress: Callable[[Mapping[int, Any], int], Progress],
) -> dict[int, Any]:
    """Begin a call on every server; wait until `progress` (of the answers, and how many are open) is decided.

    Returns:
        The answers (or errors) so far by server number; the calls that are still open go on.
    """
    asked = list(servers)
    answers: dict[int, Any] = {}
    decided = asyncio.get_running_loop().create_future()

    def look() -> None:
        if not decided.done() and progress(answers, len(asked) - len(answers)) is not Progress.PENDING:
            decided.set_result(None)

    def note(number: int, answer: Any) -> None:
        answers[number] = answer
        look()

    look()
    for server in asked:
        begin(server, partial(note, server.number))
    await decided
    return dict(answers)
