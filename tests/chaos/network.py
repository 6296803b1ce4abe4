"""A small network of its own for each part: namespaces joined by a bridge, which can be cut pair by pair.

The calling process moves into a new network namespace with the bridge; each part lives in another one behind
a veth pair. All of them end with the process that holds them: nothing is left on the machine. A packet
from one part to another is dropped by giving it a link address that nobody has, as a cable that is cut drops
it: nobody is told. Needs root; main thread only at the start, any thread later.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tests.support import wait_until

CLONE_NEWNET = 0x40000000
NOBODY = "02:00:00:00:00:01"
COMMAND_SECONDS = 10.0


def run(*words: str, check: bool = True) -> str:
    """Run a command; return its output."""
    done = subprocess.run(words, check=check, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    return done.stdout


class Network:
    """The namespaces of the parts, by name. `cut` holds the pairs (from, to) whose packets are dropped."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.cut: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._holders: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        leave_network()
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "address", "add", "10.77.0.254/24", "dev", "br0")
        run("ip", "link", "set", "br0", "up")
        for name in self.names:
            self._add(name)
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def _add(self, name: str) -> None:
        # The namespace lives as long as this process, which dies with ours.
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        holder = self._holders[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        own = _namespace(os.getpid())
        wait_until(
            lambda: _namespace(holder.pid) not in ("", own), COMMAND_SECONDS, f"{name} has a namespace"
        )
        wait_until(lambda: _command(holder.pid) == "sleep", COMMAND_SECONDS, f"{name}'s namespace is held")
        veth = f"v-{name}"[:15]
        run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        run("ip", "link", "set", veth, "master", "br0", "up")
        self.within(name, "ip", "link", "set", "lo", "up")
        self.within(name, "ip", "address", "add", f"{self.host(name)}/24", "dev", "eth0")
        self.within(name, "ip", "link", "set", "eth0", "up")

    def host(self, name: str) -> str:
        """Return a part's address."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def entering(self, name: str) -> list[str]:
        """Return the words that, before a command, have it run in a part's namespace."""
        return ["nsenter", f"--net=/proc/{self._holders[name].pid}/ns/net", "--"]

    def within(self, name: str, *words: str, check: bool = True) -> str:
        """Run a command in a part's namespace; return its output."""
        return run(*self.entering(name), *words, check=check)

    def drop(self, source: str, target: str) -> None:
        """Drop all packets from one part to another from now on, unless they are dropped already."""
        with self._lock:
            if (source, target) in self.cut:
                return
            self.cut.add((source, target))
            words = ["lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]
            self.within(source, "ip", "neigh", "replace", self.host(target), *words)

    def pass_on(self, source: str, target: str) -> None:
        """Pass packets on again."""
        with self._lock:
            if (source, target) in self.cut:
                self.cut.remove((source, target))
                self.within(source, "ip", "neigh", "del", self.host(target), "dev", "eth0", check=False)

    def reset(self, source: str, target: str) -> None:
        """Break the connections that there are between two parts; new ones can be made at once."""
        self.within(source, "ss", "-K", "dst", self.host(target), check=False)

    def heal(self) -> None:
        """Pass everything on again."""
        for source, target in sorted(self.cut):
            self.pass_on(source, target)


def leave_network() -> None:
    """Move this process into a new network namespace. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespace: {os.strerror(number)}")


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
