"""Gives the project's modules another clock, other threads, disks and random numbers than Python's own.

The code reaches these through the modules `time`, `threading`, `os`, `secrets`, `sqlite3` and
`concurrent.futures`; here each module of the project gets stand-ins for those it imported. That is all
that is changed of it. Done once, before a simulation, in a process of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import os
import pathlib
import random
import secrets
import shutil
import sqlite3
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import wire.directories

PACKAGES = ("wire", "fusefs", "mediator", "metaserver", "dataserver", "tools")


class StandIn(types.SimpleNamespace):
    """A module's stand-in: what is not given is the module's own."""

    def __init__(self, module: Any, **given: Any) -> None:
        super().__init__(**given)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


class LoopThreads:
    """Stands for a data server's threads: the loop carries out what it is given, in virtual time."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, *_: object) -> None:
        raise AssertionError("a real thread would make each life differ: use the loop's run_in_executor")

    def shutdown(self) -> None:
        pass


class LoopJobs(LoopThreads):
    """Stands for threads of the metadata server: each job is one of the loop, done at one moment."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Job:  # type: ignore[override]
        return Job(asyncio.get_running_loop().run_in_executor(None, function, *args), function, args)


class Job:
    """What a thread was given to do."""

    def __init__(self, later: asyncio.Future[Any], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._later, self._work, self._args = later, work, args

    def result(self) -> Any:
        """Return what comes of it; who waits so has it done now."""
        self._later.cancel()
        return self._work(*self._args)


def install(
    now: Callable[[], float],
    wall_clock: Callable[[], float],
    sleep: Callable[[float], None],
    threads: Any,
    host_os: Any,
    open_file: Callable[..., Any],
    connect: Callable[..., sqlite3.Connection],
    rng: random.Random,
) -> None:
    """Replace what all loaded modules of the project use.

    Args:
        now: the monotonic clock, in seconds.
        wall_clock: seconds since 1970.
        sleep: what a client's thread calls.
        threads: stands for `threading` and the pools, in fusefs.
        host_os: stands for `os`, in the servers.
        open_file: stands for `io.open`, in paths.
        connect: stands for `sqlite3.connect`.
        rng: the simulation's random numbers.
    """

    def time_ns() -> int:
        return int(wall_clock() * 1e9)

    def disk_usage(path: Any) -> Any:
        return host_os.disk_usage(path)  # of whichever process runs then

    clock = StandIn(
        time,
        monotonic=now,
        clock_gettime=lambda _: now(),  # no host sleeps
        perf_counter=now,
        time=wall_clock,
        time_ns=time_ns,
        monotonic_ns=lambda: int(now() * 1e9),
        sleep=sleep,
    )
    anywhere = {
        id(time): clock,
        id(time.monotonic): now,
        id(time.time_ns): time_ns,
        id(secrets): StandIn(
            secrets,
            token_bytes=rng.randbytes,
            token_hex=lambda count: rng.randbytes(count).hex(),
            randbelow=rng.randrange,
        ),
        id(random): StandIn(random, uniform=rng.uniform, random=rng.random),
        id(sqlite3): StandIn(sqlite3, connect=connect),
    }
    client = {
        id(threading): threads,
        id(concurrent.futures.ThreadPoolExecutor): threads.ThreadPoolExecutor,
        id(concurrent.futures.Future): threads.Future,
    }
    of_package = {
        "fusefs": client,
        "dataserver": {
            id(os): host_os,
            id(shutil): StandIn(shutil, disk_usage=disk_usage),
            id(concurrent.futures.ThreadPoolExecutor): LoopThreads,
        },
        "metaserver": {
            id(os): host_os,
            id(threading): threads,
            id(concurrent.futures.ThreadPoolExecutor): LoopJobs,
        },
    }
    for package, module in _modules():
        more = of_package.get(package, {id(os): host_os} if module is wire.directories else {})
        _replace(module, anywhere | more, random.uniform, rng.uniform)
    pathlib.os = host_os  # type: ignore[attr-defined]
    pathlib.io = StandIn(io, open=open_file)  # type: ignore[attr-defined]


def _modules() -> Iterator[tuple[str, types.ModuleType]]:
    for name, module in sorted(sys.modules.items()):
        package = name.split(".")[0]
        if package in PACKAGES and module is not None:
            yield package, module


def _replace(module: Any, by: dict[int, Any], uniform: Any, own_uniform: Any) -> None:
    for name, value in list(vars(module).items()):
        if id(value) in by:
            setattr(module, name, by[id(value)])
        functions = [value]
        if isinstance(value, type) and value.__module__ == module.__name__:
            functions = list(vars(value).values())
        for function in functions:
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                _replace_defaults(function, by, uniform, own_uniform)


def _replace_defaults(function: types.FunctionType, by: dict[int, Any], uniform: Any, own: Any) -> None:
    def other(value: Any) -> Any:
        return own if value == uniform else by.get(id(value), value)

    if function.__defaults__:
        function.__defaults__ = tuple(map(other, function.__defaults__))
    if function.__kwdefaults__:
        function.__kwdefaults__ = {name: other(value) for name, value in function.__kwdefaults__.items()}
