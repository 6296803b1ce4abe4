"""What docs/machines.md says, typed as it stands there: three machines, each in a namespace of its own.

Only the places differ: what is /srv/quorumfs there is a directory of each machine here. Namespaces belong to
threads: the test runs in one, so that the process itself stays where it is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.chaos.network import Network
from tests.support import ROOT, wait_until
from tools import mounts
from wire.ring_file import own_files
from wire.ring_head import BLOCKS, SHARED_MEMORY, prefix

PAGE = (ROOT / "docs" / "machines.md").read_text()
STATE = "/srv/quorumfs"
MACHINES = ("one", "two", "three")
"""In the order of their addresses on the page, 10.77.0.1 to .3."""
READY_SECONDS = 20.0
HEAL_SECONDS = 40.0


def block(language: str, holding: str = "") -> str:
    """Return the page's first block of a language that has some text."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return next(text for text in found if holding in text)


def started_by(unit: str) -> list[str]:
    """Return what the unit for a kind of server starts, in words."""
    (line,) = re.findall(rf"^ExecStart=/usr/local/bin/(quorumfs serve {unit} .*)$", PAGE, re.MULTILINE)
    return shlex.split(line)


class Machine:
    """One of the three: a network namespace, a directory, and the servers that were started there."""

    def __init__(self, network: Network, name: str, base: Path) -> None:
        self.network, self.name, self.number = network, name, MACHINES.index(name) + 1
        self.state = base / name
        self.state.mkdir()
        self.configure(block("toml"))
        self.servers: dict[str, subprocess.Popen[bytes]] = {}

    def configure(self, text: str) -> None:
        (self.state / "cluster.toml").write_text(text)

    def _words(self, words: list[str]) -> list[str]:
        here = [word.replace(STATE, str(self.state)).replace("%i", str(self.number)) for word in words]
        assert here[0] == "quorumfs", here
        return [*self.network.entering(self.name), sys.executable, "-P", "-m", "tools.cli", *here[1:]]

    def type(self, line: str) -> str:
        """Run a command line of the page's; return what it prints."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = self._words(shlex.split(line))
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done
        return done.stdout

    def lose_memory(self) -> None:
        """Lose what the data server was given and had not taken in when it was killed."""
        for path in own_files(SHARED_MEMORY, prefix(self.state / "data", BLOCKS)):
            path.unlink()

    def is_healthy(self) -> bool:
        words = self._words(["quorumfs", "status", "--state", STATE])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0

    def start(self, *kinds: str) -> None:
        """Start servers as systemd does, and wait until they say that they are ready."""
        for kind in kinds:
            path = self.state / f"notify-{kind}"
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(str(path))
                manager.settimeout(READY_SECONDS)
                self.servers[kind] = subprocess.Popen(
                    self._words(started_by(kind)),
                    env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(path)},
                    stdout=subprocess.DEVNULL,
                    stderr=(self.state / f"{kind}.log").open("ab"),
                    start_new_session=True,
                )
                assert manager.recv(100) == b"READY=1"

    def stop(self, *kinds: str, by: signal.Signals = signal.SIGTERM) -> None:
        for kind in kinds or tuple(self.servers):
            server = self.servers.pop(kind)
            server.send_signal(by)
            server.wait(READY_SECONDS)

    @contextmanager
    def mounted(self, place: Path) -> Iterator[Path]:
        """Mount as the page's line for /etc/fstab has it: what mount(8) runs for that type."""
        source, target, kind, options, *_ = block("fstab").split()
        assert (source, target, kind) == (STATE, "/mnt/q", mounts.TYPE)
        place.mkdir(exist_ok=True)
        words = [str(self.state), str(place), "-o", options]
        subprocess.run(
            [*self.network.entering(self.name), sys.executable, "-P", "-m", "tools.mount_helper", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )
        try:
            yield place
        finally:
            self.type(f"quorumfs umount {shlex.quote(str(place))} --state {STATE}")


@contextmanager
def three_machines(base: Path) -> Iterator[list[Machine]]:
    with Network(MACHINES) as network, ExitStack() as ending:
        machines = [Machine(network, name, base) for name in MACHINES]
        for machine in machines:
            ending.callback(machine.stop)
        yield machines


def in_a_thread_of_its_own(work: Callable[[], None]) -> None:
    """Do some work that moves its thread into other namespaces."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


def live(base: Path) -> None:
    """Set three machines up, lose one for a while, then its disk, then the one with the metadata."""
    with three_machines(base) as machines:
        one, two, three = machines
        one.start("meta")
        for machine in machines:
            machine.start("data", "mediator")
        wait_until(two.is_healthy, HEAL_SECONDS, "all are up")
        with three.mounted(base / "mnt-3") as here, two.mounted(base / "mnt-2") as there:
            (here / "a.txt").write_text("first\n")
            assert (there / "a.txt").read_text() == "first\n"
            # A machine is away, and comes back.
            two.stop("data", by=signal.SIGKILL)
            (here / "b.txt").write_text("while one was away\n")
            assert (there / "b.txt").read_text() == "while one was away\n"
            two.start("data")
            wait_until(three.is_healthy, HEAL_SECONDS, "it was refilled")
            # Its disk is replaced by an empty one.
            two.stop("data", by=signal.SIGKILL)
            two.lose_memory()
            shutil.rmtree(two.state / "data")
            two.start("data")
            wait_until(three.is_healthy, HEAL_SECONDS, "the new disk was filled")
            assert "clean" in three.type(f"quorumfs fsck --state {STATE}")
            two.type(block("sh", "quorumfs backup").strip())
        # The machine with the metadata is lost for good.
        one.stop(by=signal.SIGKILL)
        one.lose_memory()
        for machine in (two, three):
            machine.stop("mediator")
        (given,) = re.findall(r"\(`(listen = \"[^`]*)`\)", PAGE)
        for machine in (two, three):
            text = block("toml").replace('listen = "10.77.0.1:7003"', given)
            assert text != block("toml")
            machine.configure(text)
        restore, rebuild = block("sh", "quorumfs restore").splitlines()
        assert rebuild.startswith("quorumfs rebuild")
        two.type(restore)
        two.start("meta")
        for machine in (two, three):
            machine.start("mediator")
        with three.mounted(base / "mnt-3") as here:
            assert (here / "a.txt").read_text() == "first\n"
            assert (here / "b.txt").read_text() == "while one was away\n"
            (here / "c.txt").write_text("without the first machine\n")


def test_the_page_on_several_machines_is_true(tmp_path: Path, fuse_device: None) -> None:
    threads = threading.active_count()
    in_a_thread_of_its_own(lambda: live(tmp_path))
    assert threading.active_count() == threads


@pytest.mark.parametrize("kind", ["data", "mediator", "meta"])
def test_each_kind_of_server_has_a_unit(kind: str) -> None:
    assert started_by(kind)[:3] == ["quorumfs", "serve", kind]


def test_a_server_whose_address_comes_after_it_is_started_again(tmp_path: Path) -> None:
    """By systemd, which gives up after five starts within ten seconds: systemd-system.conf(5)."""
    (tmp_path / "cluster.toml").write_text(block("toml").replace("10.77.0.1", "192.0.2.1"))
    words = [sys.executable, "-P", "-m", "tools.cli", "serve", "data", "--number", "1"]
    done = subprocess.run(
        [*words, "--state", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"cannot listen on 192.0.2.1:7001" in done.stderr
    unit = dict(line.split("=", 1) for line in block("ini", "Type=notify").splitlines() if "=" in line)
    assert unit["Restart"] == "always"
    assert str(done.returncode) not in unit.get("RestartPreventExitStatus", "").split()
    assert int(unit["RestartSec"]) * 5 > 10
