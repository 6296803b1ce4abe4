"""One run: build the cluster, start the load, stage faults, end them, wait until whole, check, sum up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import verify
from tests.chaos.calls import add_up
from tests.chaos.cluster import NAMES, ChaosCluster
from tests.chaos.counter import twice
from tests.chaos.history import HistoryClients
from tests.chaos.load import PLACE
from tests.chaos.lone import kinds_of_one_mount
from tests.chaos.nemesis import Nemesis
from tests.chaos.network import Network
from tests.chaos.rings import RingWatch
from tests.chaos.timeline import Timeline
from tests.support import ROOT
from tools.health import await_writable
from tools.progress import progress_bar

NO_FAULTS = {"ended", "damaged", "skipped", "all ended", "phase", "found"}
"""Events of the timeline that are not faults."""
END_SECONDS = 60.0
"""About what the waiting and the checks after the faults take, for the progress bar."""


class LoadProcess:
    """`tests.chaos.load` as a child process."""

    def __init__(self, number: int, seed: int, mounts: list[Path], journal: Path) -> None:
        words = [sys.executable, "-m", "tests.chaos.load", str(number), str(seed)]
        self._child = subprocess.Popen(
            [*words, *map(str, mounts), str(journal)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )

    def answer(self) -> dict[str, Any]:
        """Return the next line that it prints."""
        assert self._child.stdout is not None
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer

    def go_on(self) -> None:
        """Tell it to go on to the next phase."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._child.kill()
        self._child.wait()


class Run:
    """One run in the directory `base`; `run` returns its summary."""

    def __init__(
        self,
        base: Path,
        seed: int,
        seconds: float,
        kinds: list[str],
        mounts: int = 2,
        history: Path | None = None,
    ) -> None:
        self._mounts, self._history = mounts, history
        self._base, self._seed, self._seconds, self._kinds = base, seed, seconds, kinds
        self._timeline = Timeline(base / "timeline.jsonl")
        self._found: list[str] = []

    def run(self) -> dict[str, Any]:
        """Run it all."""
        places = [self._base / "one", self._base / "two"]
        for place in places:
            place.mkdir()
        mountpoints = places[: self._mounts]
        with ExitStack() as stack:
            network = stack.enter_context(Network(NAMES))
            cluster = stack.enter_context(ChaosCluster.build(self._base / "cluster", network))
            bar = stack.enter_context(progress_bar(3, "phases", self._seconds + END_SECONDS))
            self._phase("starting")
            cluster.start()
            await_writable(cluster)
            for place in mountpoints:
                cluster.mount(place)
            rings = stack.enter_context(RingWatch(cluster.config.metaserver_directory))
            (mountpoints[0] / PLACE).mkdir()
            orders = [mountpoints[0], mountpoints[-1]], [mountpoints[-1], mountpoints[0]]
            journals = [self._base / f"names-{number}" for number in range(len(orders))]
            loads = [
                LoadProcess(number, self._seed, order, journal)
                for number, (order, journal) in enumerate(zip(orders, journals, strict=True))
            ]
            for load in loads:
                stack.callback(load.kill)
            for load in loads:
                load.answer()
            clients = self._history and HistoryClients(self._base, mountpoints, self._seconds, stack)
            more = (
                partial(kinds_of_one_mount, cluster, places[0], places[1], journals)
                if self._mounts == 1
                else None
            )
            nemesis = Nemesis(cluster, mountpoints, self._seed, self._timeline, self._kinds, more)
            bar.describe(f"breaking things, seed {self._seed}")
            self._phase("faults")
            self._stage(nemesis, bar.advance)
            self._phase("waiting until whole")
            bar.describe("waiting until whole")
            figures = self._end(nemesis, cluster, loads)
            if clients and self._history:
                figures["wrong"] += clients.end(self._history)
            figures["told"] = rings.told
            if self._mounts == 1 and not rings.told:
                self._note(["no change was told without a call"])
            bar.advance(END_SECONDS, 1)
            self._phase("stopping")
            cluster.close()
            self._note(verify.stopped(cluster))
            self._phase("end")
        self._timeline.close()
        return self._summary(figures)

    def _stage(self, nemesis: Nemesis, advance: Callable[[float, int], object]) -> None:
        last = start = time.monotonic()

        def tell() -> None:
            nonlocal last
            now = time.monotonic()
            advance(now - last, 0)
            last = now

        nemesis.go_on(start + self._seconds, tell)
        advance(0.0, 1)

    def _end(self, nemesis: Nemesis, cluster: ChaosCluster, loads: list[LoadProcess]) -> dict[str, Any]:
        """End the faults and the load, and check; return the load's figures."""
        nemesis.end_all()
        for load in loads:
            load.go_on()
        for load in loads:
            load.answer()
        self._phase("load stopped")
        self._note(nemesis.found)
        self._note(verify.await_whole(cluster))
        self._phase("whole")
        for load in loads:
            load.go_on()
        answers = [load.answer() for load in loads]
        figures = add_up(answers)
        figures["wrong"] += twice([answer["granted"] for answer in answers])
        return figures

    def _phase(self, name: str) -> None:
        self._timeline("phase", name=name)

    def _note(self, found: list[str]) -> None:
        for line in found:
            self._timeline("found", line=line)
        self._found += found

    def _summary(self, figures: dict[str, Any]) -> dict[str, Any]:
        faults = {kind: count for kind, count in self._timeline.counts.items() if kind not in NO_FAULTS}
        return {
            "seed": self._seed,
            "mounts": self._mounts,
            "minutes": round(self._seconds / 60, 2),
            "faults": dict(sorted(faults.items())),
            "skipped": self._timeline.counts["skipped"],
            **figures,
            "not_whole": self._found,
        }
