"""SQLite and PostgreSQL keep what they acknowledged, and their own consistency, when they are killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import wait_until

ACCOUNTS = 50
START = 1000

TRANSFERS = """
import random, sqlite3, sys
path, mode, seed = sys.argv[1:]
dice = random.Random(seed)
database = sqlite3.connect(path, isolation_level=None, timeout=30)
database.execute(f"PRAGMA journal_mode={mode}")
database.execute("PRAGMA synchronous=FULL")
database.execute("PRAGMA cache_size=10")  # so that pages go to the file within a transaction
while True:
    amount, (one, two) = dice.randrange(100), dice.sample(range(50), 2)
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, one))
    database.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, two))
    size = dice.randrange(9000)
    row = database.execute("INSERT INTO transfer (note) VALUES (randomblob(?))", (size,)).lastrowid
    database.execute("COMMIT")
    print(row, flush=True)
"""


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_sqlite_killed_while_it_writes(here: Path, mode: str) -> None:
    path = here / "database"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
        database.execute("CREATE TABLE transfer (id INTEGER PRIMARY KEY AUTOINCREMENT, note BLOB)")
        database.executemany("INSERT INTO account VALUES (?, ?)", [(n, START) for n in range(ACCOUNTS)])
    database.close()
    for seed in range(3):
        print(f"seed {seed}")
        acknowledged = _transfer_until_killed(path, mode, seed)
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT sum(balance) FROM account").fetchone() == (ACCOUNTS * START,)
        assert database.execute("SELECT count(*), max(id) >= ? FROM transfer", (acknowledged,)).fetchone()[1]
        database.close()


def _transfer_until_killed(path: Path, mode: str, seed: int) -> int:
    """Return the number of the last transfer that was acknowledged before the kill."""
    with subprocess.Popen(
        [sys.executable, "-c", TRANSFERS, str(path), mode, str(seed)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        last = 0
        for _ in range(random.Random(seed).randrange(8, 20)):
            last = int(writer.stdout.readline())
        writer.kill()
        return max([last, *map(int, writer.stdout.read().splitlines())])


class Postgres:
    """A PostgreSQL server of its own, run as user postgres."""

    def __init__(self, place: Path) -> None:
        self.place, self.data = place, place / "data"
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        assert found, "PostgreSQL is missing; install it with: make programs"
        self.programs = found[-1]

    def run(self, program: str, *words: str, seconds: float = 250) -> str:
        """Run one of PostgreSQL's programs as user postgres; return what it printed."""
        done = self.try_to_run(program, *words, seconds=seconds)
        assert done.returncode == 0, f"{program} {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def try_to_run(self, program: str, *words: str, seconds: float = 250) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(program, *words),
            cwd=self.place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def command(self, program: str, *words: str) -> list[str]:
        become = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        return [*become, str(self.programs / program), *words]

    def initialize(self) -> None:
        self.run("initdb", "--data-checksums", "-A", "trust", "-D", str(self.data))
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = ''\nunix_socket_directories = '{self.place}'\n")

    def start(self) -> None:
        """Start it; after a kill the kernel may need a moment to give its shared memory free."""
        words = ("-D", str(self.data), "-l", str(self.place / "log"), "-w", "-t", "120", "start")
        wait_until(lambda: self.try_to_run("pg_ctl", *words).returncode == 0, 60, "PostgreSQL starts")

    def stop(self) -> None:
        self.try_to_run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-m", "fast", "stop")

    def kill(self) -> None:
        """Kill all of its processes at once."""
        main = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        os.kill(main, signal.SIGKILL)
        for process in map(int, children):
            with suppress(ProcessLookupError):  # a worker that ended meanwhile
                os.kill(process, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{main}").exists(), 20, "PostgreSQL has ended")

    def ask(self, query: str) -> str:
        return self.run("psql", "-h", str(self.place), "-Atqc", query, "postgres").strip()


@pytest.fixture
def postgres(here: Path) -> Iterator[Postgres]:
    if os.geteuid() != 0:
        pytest.skip("only root can become user postgres")
    place = here.rename(here.with_name("pg"))  # the name of a socket has at most 107 bytes
    place.chmod(0o777)
    server = Postgres(place)
    server.initialize()
    yield server
    server.stop()


def transactions(postgres: Postgres) -> int:
    return int(postgres.ask("SELECT count(*) FROM pgbench_history"))


def wait_for_transactions(postgres: Postgres, least: int) -> int:
    """Return how many transactions are committed once there are so many."""
    return wait_until(lambda: max(0, transactions(postgres) - least), 120, "transactions") + least


@pytest.mark.long
@pytest.mark.timeout(900)
def test_postgresql_killed_under_load(postgres: Postgres) -> None:
    postgres.start()
    where = ("-h", str(postgres.place))
    postgres.run("pgbench", *where, "-i", "-s", "2", "postgres")
    done = 0
    for _ in range(3):
        bench = subprocess.Popen(
            postgres.command("pgbench", *where, "-n", "-c", "4", "-T", "60", "-P", "1", "postgres"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        acknowledged = wait_for_transactions(postgres, done + 200)
        postgres.kill()
        bench.communicate(timeout=60)
        postgres.start()
        done = transactions(postgres)
        assert done >= acknowledged
        sums = [
            postgres.ask(f"SELECT coalesce(sum({column}), 0) FROM pgbench_{table}")
            for column, table in (
                ("abalance", "accounts"),
                ("tbalance", "tellers"),
                ("bbalance", "branches"),
                ("delta", "history"),
            )
        ]
        assert len(set(sums)) == 1, sums
    assert "redo done" in (postgres.place / "log").read_text()
    postgres.run("pg_amcheck", *where, "--install-missing", "--heapallindexed", "postgres")
    postgres.ask("VACUUM FULL")
    assert transactions(postgres) == done
    postgres.stop()
    postgres.run("pg_checksums", "--check", "-D", str(postgres.data))
