"""The whole database read in the background, so that damage is found before somebody needs what it hit.

Decides nothing; metaserver.pages compares each page that is read. A pass runs in a thread on a connection
of its own and changes nothing. All else belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from metaserver import log_failure, pages

PERIOD_SECONDS = 24 * 3600.0
PAGES_SHOWN = 20

logger = logging.getLogger("metaserver")


def first_damage(connection: sqlite3.Connection) -> str:
    """Read every page and compare the structure of all tables; return what is wrong first, or "".

    Takes time in proportion to the database. Source: https://www.sqlite.org/pragma.html#pragma_quick_check
    """
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        return "" if found == "ok" else " ".join(str(found).split())
    except sqlite3.Error as error:
        if not pages.is_damage(error):
            raise
        return str(error)


class PageCheck:
    """One database's passes."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(1, "page-check")
        self._connection: sqlite3.Connection | None = None
        self._closing = False
        self._checked_at = 0.0
        self._found = ""

    async def run_once(self) -> str:
        """Read the whole database; return what is wrong first, or "".

        Raises:
            sqlite3.Error: it could not be read for another reason than damage.
        """
        self._found = await asyncio.get_running_loop().run_in_executor(self._thread, self._pass)
        self._checked_at = time.time()
        if self._found:
            damaged = pages.damaged_pages(self._database)
            logger.error(
                "%s is damaged (%s; pages %s): %s", self._database, self._found, damaged, pages.ADVICE
            )
        return self._found

    async def run_forever(self) -> None:
        """Make a pass now and then every PERIOD_SECONDS, until cancelled."""
        while True:
            try:
                await self.run_once()
            except sqlite3.Error as error:
                logger.error("the database could not be checked: %s", error)
            await asyncio.sleep(PERIOD_SECONDS)

    def _pass(self) -> str:
        with closing(pages.connect(self._database, read_only=True, check_same_thread=False)) as connection:
            self._connection = connection
            try:
                return "" if self._closing else first_damage(connection)
            finally:
                self._connection = None

    def describe(self) -> dict[str, Any]:
        """Return what is known of damage: the pages that were met, and what the last whole pass found."""
        damaged = pages.damaged_pages(self._database)
        frames = sorted(pages.damaged_frames(self._database))
        return {
            "damaged": bool(damaged or frames or self._found),
            "log_failure": log_failure.reason(os.fsencode(self._database.absolute())),
            "damaged_pages": damaged[:PAGES_SHOWN],
            "damaged_log_pages": frames[:PAGES_SHOWN],
            "found": self._found,
            "checked_at": self._checked_at,
        }

    def close(self) -> None:
        """End a pass that is running."""
        self._closing = True
        if (connection := self._connection) is not None:
            connection.interrupt()
        self._thread.shutdown()
