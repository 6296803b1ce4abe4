"""Imports point one way: wire <- fusefs, mediator, metaserver, dataserver <- tools."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "wire": {"wire"},
    "fusefs": {"wire", "fusefs"},
    "mediator": {"wire", "mediator"},
    "metaserver": {"wire", "metaserver"},
    "dataserver": {"wire", "dataserver"},
    "tools": {"wire", "fusefs", "mediator", "metaserver", "dataserver", "tools"},
}
ONE_MODULE_ALONE = {
    "fuse": {"fusefs"},
    "mfusepy": {"fusefs"},
    "msgpack": {"wire"},
}
"""What only one package may import at all."""


def imported(source: str) -> set[str]:
    """Return the top-level names that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    for file in files:
        names = imported(file.read_text())
        wrong = (names & ALLOWED.keys()) - ALLOWED[package]
        wrong |= {name for name, only in ONE_MODULE_ALONE.items() if name in names and package not in only}
        wrong |= names & {"tests", "pickle", "marshal", "shelve"}
        assert not wrong, f"{file.relative_to(ROOT)} must not import {', '.join(sorted(wrong))}"


def test_one_module_alone_knows_the_serializer_and_few_the_binding() -> None:
    users: dict[str, set[str]] = {name: set() for name in ONE_MODULE_ALONE}
    for package in ALLOWED:
        for file in (ROOT / package).rglob("*.py"):
            for name in imported(file.read_text()) & users.keys():
                users[name].add(str(file.relative_to(ROOT)))
    assert users["msgpack"] == {"wire/msgpack_codec.py"}
    for file_name in users["fuse"] | users["mfusepy"]:
        assert re.fullmatch(r"fusefs/operations(/\w+)?\.py", file_name), file_name


def test_the_check_sees_hidden_imports() -> None:
    assert imported("def f():\n    from tools.cli import main\n    import mediator.vote") == {
        "tools",
        "mediator",
    }
