"""Method tables: what their annotations accept, and what they refuse with a BadRequest."""

from __future__ import annotations

import random
import typing
from typing import Any, NamedTuple

import msgpack
import pytest

from wire import xml_codec
from wire.errors import BadRequest
from wire.messages import AttributeChanges, BlockRecord, Commit, Extent, Opened, Renewal, Ticket
from wire.methods import BookkeepingMethods, DataMethods, LabMethods
from wire.table import DEEPEST, Mismatch, converter, method_of, methods_of


class Inner(NamedTuple):
    name: bytes
    size: int | None = None


class Outer(NamedTuple):
    inner: Inner
    more: list[Inner]
    maybe: Inner | None


class Table:
    def nest(self, outer: Outer, flag: bool = False) -> Outer | None:
        """Take something nested."""

    def _hidden(self) -> None: ...


def deep(count: int) -> Any:
    """Return an integer within so many lists."""
    return [deep(count - 1)] if count > 1 else [1]


ACCEPTED: list[tuple[Any, Any, Any]] = [
    (int, -(2**63), -(2**63)),
    (int, 2**63 - 1, 2**63 - 1),
    (bool, True, True),
    (float, 1, 1.0),
    (float, 1.5, 1.5),
    (str, "é", "é"),
    (bytes, b"\xff", b"\xff"),
    (bytes, "é", b"\xc3\xa9"),
    (None, None, None),
    (int | None, None, None),
    (int | None, 5, 5),
    (list[int], [], []),
    (list[bytes], [b"a", "b"], [b"a", b"b"]),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[str, Any], {"a": [b"", None]}, {"a": [b"", None]}),
    (dict[str, Any], {"a": deep(DEEPEST)}, {"a": deep(DEEPEST)}),
    (Inner, [b"a", 1], Inner(b"a", 1)),
    (Inner, [b"a"], Inner(b"a")),
    (list[Inner | None], [[b"a", None], None], [Inner(b"a"), None]),
    (Outer, [[b"a", 1], [[b"b", 2]], None], Outer(Inner(b"a", 1), [Inner(b"b", 2)], None)),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), ACCEPTED)
def test_accepted(annotation: Any, value: Any, expected: Any) -> None:
    result = converter(annotation)(value)
    assert result == expected
    assert type(result) is type(expected)


REFUSED: list[tuple[Any, list[Any]]] = [
    (int, [True, 1.0, "1", None, 2**63, -(2**63) - 1, b"1", [1]]),
    (bool, [0, 1, "true", None]),
    (float, [True, "1.0", None]),
    (str, [b"a", 1, None]),
    (bytes, [1, None, [1], bytearray(b"a")]),
    (None, [0, False, ""]),
    (int | None, ["", False]),
    (list[int], [None, (1,), {}, [1, "2"], "12"]),
    (dict[str, int], [[], {1: 1}, {"a": "b"}, {b"a": 1}]),
    (dict[str, Any], [{"a": 2**63}, {"a": [{"b": -(2**63) - 1}]}, {"a": {1: 2}}, {"a": deep(DEEPEST + 1)}]),
    (dict[str, Any], [{"a": msgpack.Timestamp(1)}, {"a": {b"b": 1}}]),
    (Inner, [[], [b"a", 1, 2], [1], {"name": b"a"}, "a", None]),
    (Outer, [[[b"a"], [], 5], [[b"a"], [[1]], None], [None, [], None]]),
]


@pytest.mark.parametrize(("annotation", "values"), REFUSED)
def test_refused(annotation: Any, values: list[Any]) -> None:
    class One:
        def take(self, value: Any) -> None: ...

    One.take.__annotations__ = {"value": annotation, "return": None}
    for value in values:
        with pytest.raises(BadRequest, match=r"take: value: wants "):
            method_of(One.take).arguments([value])


@pytest.mark.parametrize("annotation", [set[int], tuple[int, int], int | str, dict[int, int], object])
def test_what_cannot_cross_the_wire_is_found_when_compiled(annotation: Any) -> None:
    with pytest.raises(TypeError, match="cannot cross"):
        converter(annotation)


def test_arity_and_defaults() -> None:
    nest = method_of(Table.nest)
    outer = [[b"a"], [], None]
    assert nest.arguments([outer]) == [Outer(Inner(b"a"), [], None)]
    assert nest.arguments([outer, True])[1] is True
    for params in ([], [outer, True, 1], {}, None, (outer,)):
        with pytest.raises(BadRequest, match="nest"):
            nest.arguments(params)
    assert nest.positional([outer], {"flag": True}) == [outer, True]
    assert nest.positional([], {"outer": outer}) == [outer]
    for args, keywords in (
        ([], {}),
        ([outer], {"outer": outer}),
        ([outer], {"x": 1}),
        ([1, 2, 3], {}),
        ([], {"flag": 1}),
    ):
        with pytest.raises(BadRequest, match="nest"):
            nest.positional(args, keywords)


def test_signatures_and_help() -> None:
    assert list(methods_of(Table)) == ["nest"]
    assert method_of(Table.nest).help == "Take something nested."
    assert method_of(Table.nest).signatures == [["array", "array"], ["array", "array", "boolean"]]
    assert method_of(LabMethods.corrupt).signatures == [["string", "string"], ["string", "string", "string"]]
    assert method_of(BookkeepingMethods.counts).signatures == [["struct"]]


def test_a_commit_is_rebuilt_to_the_last_field() -> None:
    commit = Commit(
        cut=None,
        extents=[Extent(0, 5, b"b" * 16, 0), Extent(5, 9, None, 0)],
        extend_to=14,
        blocks=[BlockRecord(b"b" * 16, 5, b"d" * 32)],
        changes=AttributeChanges(mtime_ns=2**62),
        durable=True,
    )
    plain = [
        None,
        [[0, 5, b"b" * 16, 0], [5, 9, None, 0]],
        14,
        [[b"b" * 16, 5, b"d" * 32]],
        [None, None, None, None, 2**62],
        True,
    ]
    rebuilt = converter(Commit)(plain)
    assert rebuilt == commit
    assert type(rebuilt.extents[0]) is Extent and type(rebuilt.changes) is AttributeChanges


@pytest.mark.parametrize("kind", [Ticket, Commit, Extent, AttributeChanges, BlockRecord, Opened, Renewal])
def test_a_tuple_is_converted_as_its_fields_are_one_by_one(kind: Any) -> None:
    hints, dice = typing.get_type_hints(kind), random.Random(7)
    plain = [None, True, 0, -1, 2**63 - 1, 2**63, 1.5, "word", b"bytes", [], [1], [b"", 1, b""], {}]
    convert, fields = converter(kind), [converter(hints[name]) for name in kind._fields]
    accepted = refused = 0
    for _ in range(2000):
        fitting = [_value_for(hints[name], dice) for name in kind._fields]
        values = [value if dice.random() < 0.95 else dice.choice(plain) for value in fitting]
        try:
            expected = [field(value) for field, value in zip(fields, values, strict=True)]
        except Mismatch:
            refused += 1
            with pytest.raises(Mismatch):
                convert(values)
        else:
            accepted += 1
            found = convert(values)
            assert type(found) is kind
            assert list(found) == expected
    assert accepted > 100
    assert refused > 100


def _value_for(annotation: Any, dice: random.Random) -> Any:
    arguments = typing.get_args(annotation)
    if type(None) in arguments:
        return None if dice.random() < 0.5 else _value_for(arguments[0], dice)
    if typing.get_origin(annotation) is list:
        return [_value_for(arguments[0], dice) for _ in range(dice.randrange(3))]
    if hasattr(annotation, "_fields"):
        hints = typing.get_type_hints(annotation)
        return [_value_for(hints[name], dice) for name in annotation._fields]
    return {int: 5, bool: True, bytes: dice.choice([b"x", "x"]), str: "s", float: 0.5}.get(annotation)


def test_what_one_encoding_takes_as_anything_the_other_one_can_tell() -> None:
    for value in ({"a": [b"", None, 2**63 - 1, -(2**63), "é", 1.5, True]}, {"a": deep(DEEPEST)}):
        (taken,) = method_of(DataMethods.keep_scrub).arguments([value])
        assert xml_codec.unpack_answer(xml_codec.pack_answer([{"scrub": taken}]))[0] == [{"scrub": value}]
