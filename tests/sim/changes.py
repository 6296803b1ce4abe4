"""Replaces a function of the running code by one with a bug. In a process of its own, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def change(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function by what `make` makes of it.

    Raises:
        AttributeError: it is not there.
        TypeError: it takes other parameters than its replacement: each call would fail, and count as found.
    """
    usual = getattr(owner, name)
    changed = make(usual)
    if inspect.isfunction(usual) and inspect.isfunction(changed):
        taken, wanted = (inspect.signature(each).parameters.values() for each in (changed, usual))
        if not any(each.kind is each.VAR_POSITIONAL for each in taken) and len(taken) != len(wanted):
            raise TypeError(f"{name} takes {len(wanted)} parameters, not {len(taken)}")
    setattr(owner, name, changed)
