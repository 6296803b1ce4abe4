"""Files that one process creates, rewrites, patches, cuts and deletes, and reads by either mount.

tests/sim/model.py knows what may be there after calls that failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.chaos.calls import Calls
from tests.chaos.work import Work
from tests.sim.model import Change, Model, cut, patched, with_content, without

COUNT = 24
NAME = "file"
SIZES = (1, 100, 5000, 70_000, 300_000, 2_500_000)
WEIGHTS = (10, 25, 30, 20, 10, 5)


class FileWork(Work):
    """See above. There is one model for each file, whose name in it is always the same."""

    name = "files"

    def __init__(self, mounts: list[Path], number: int, seed: int, calls: Calls) -> None:
        super().__init__(mounts, number, seed, calls)
        self._models = [Model() for _ in range(COUNT)]
        (self.own / self.name).mkdir(exist_ok=True)

    def step(self) -> None:
        index = self.dice.randrange(COUNT)
        model = self._models[index]
        if model.certain:
            self._change(index, model)
            self.calls.completed(self.name)
        self._compare(self.dice.choice([self.own, self.other]), index)

    def check(self) -> None:
        for mount in (self.own, self.other):
            for index in range(COUNT):
                self._compare(mount, index)

    def _path(self, mount: Path, index: int) -> Path:
        return mount / self.name / f"{NAME}-{self.number}-{index}"

    def _bytes(self) -> bytes:
        size = self.dice.choices(SIZES, WEIGHTS)[0]
        return self.dice.randbytes(self.dice.randint(1, size))

    def _change(self, index: int, model: Model) -> None:
        path, content = self._path(self.own, index), model.current.get(NAME)
        sync = self.dice.random() < 0.5
        kind = self.dice.choices(["rewrite", "patch", "cut", "delete"], (6, 3, 1, 1))[0]
        if content is None or kind == "rewrite":
            data = self._bytes()
            outcomes = [with_content(NAME, data)]
            if content is None:
                outcomes.insert(0, with_content(NAME, b""))
            self._do(model, outcomes, lambda: self.write(path, data, os.O_CREAT | os.O_TRUNC, sync=sync))
        elif kind == "patch":
            data, offset = self._bytes(), self.dice.randint(0, len(content))
            change = patched(NAME, offset, data)
            self._do(model, [change], lambda: self.write(path, data, 0, offset=offset, sync=sync))
        elif kind == "cut":
            size = self.dice.randint(0, len(content))
            self._do(model, [cut(NAME, size)], lambda: self._cut(path, size))
        else:
            self._do(model, [without(NAME)], lambda: self._delete(path))

    def _do(self, model: Model, outcomes: list[Change], act: Callable[[], object]) -> None:
        """Do something whose last outcome is that all of it was done."""
        try:
            act()
        except OSError:
            model.unknown(outcomes)
            raise
        model.done(outcomes[-1], durable=True)

    def _cut(self, path: Path, size: int) -> None:
        with self.calls.timed("write", f"truncate {path}"):
            os.truncate(path, size)

    def _delete(self, path: Path) -> None:
        with self.calls.timed("name", f"unlink {path}"):
            path.unlink()

    def _compare(self, mount: Path, index: int) -> None:
        path, model = self._path(mount, index), self._models[index]
        certain = model.certain
        content = self.look(path)
        if (wrong := model.saw({} if content is None else {NAME: content})) is None:
            self.calls.checked(len(content or b""))
            return
        text = f"{path}: {wrong}{'' if certain else ' (after a call that failed)'}"
        if content is None:
            self.calls.is_lost(text)
        else:
            self.calls.is_wrong(text)
        # Once told, it is taken as it is, so that the next finding is another one.
        model.done(without(NAME) if content is None else with_content(NAME, content), durable=True)
