"""What a method table says, compiled for both ends of the wire.

A table class is read once: each public function becomes a Method with one converter a parameter
and one for the result. A converter takes a plain value as it came off the wire (None, bool, int,
float, str, bytes, list, dict) and returns what the annotation promises, or raises Mismatch; named
tuples are rebuilt from lists. Pure; safe in any thread once compiled.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from wire.digest import Buffer
from wire.errors import BadRequest, QuorumfsError

Converter = Callable[[Any], Any]

SMALLEST_INTEGER = -(2**63)
LARGEST_INTEGER = 2**63 - 1
DEEPEST = 32
"""Where a table says Any, values may lie in each other so deep: so they fit into XML-RPC."""


class Mismatch(Exception):
    """A value is not what its annotation says; the message names both."""


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One method of a table: how to check its parameters and its result, and what to tell of it."""

    name: str
    names: tuple[str, ...]
    converters: tuple[Converter, ...]
    required: int
    result: Converter
    help: str
    signatures: list[list[str]]
    defaults: tuple[Any, ...]
    convert_all: Converter
    """Converts a list of all parameters; it returns None where that is not plain."""

    def arguments(self, params: Any) -> list[Any]:
        """Return the arguments that plain parameters stand for.

        Raises:
            BadRequest: too few, too many, or of the wrong type.
        """
        if type(params) is not list:
            raise BadRequest(f"{self.name}: parameters are a list, not {_kind(params)}")
        try:
            if (arguments := self.convert_all(params)) is not None:
                return arguments  # type: ignore[no-any-return]
        except Mismatch:
            raise self._mismatch(params) from None
        if not self.required <= len(params) <= len(self.converters):
            raise BadRequest(f"{self.name} wants ({', '.join(self.names)}), not {len(params)} parameters")
        try:
            return [convert(value) for convert, value in zip(self.converters, params, strict=False)]
        except Mismatch:
            raise self._mismatch(params) from None

    def _mismatch(self, params: list[Any]) -> BadRequest:
        for name, convert, value in zip(self.names, self.converters, params, strict=False):
            try:
                convert(value)
            except Mismatch as error:
                return BadRequest(f"{self.name}: {name}: {error}")
        return BadRequest(f"{self.name}: wrong parameters")

    def positional(self, args: Sequence[Any], keywords: dict[str, Any]) -> list[Any]:
        """Return call arguments as the list that crosses the wire.

        Raises:
            BadRequest: the arguments do not fit the method.
        """
        params = list(args)
        if keywords:
            for name in self.names[len(params) :]:
                if name not in keywords:
                    break
                params.append(keywords[name])
            if len(params) != len(args) + len(keywords):
                raise BadRequest(f"{self.name} wants ({', '.join(self.names)}), not also {sorted(keywords)}")
        if not self.required <= len(params) <= len(self.names):
            raise BadRequest(f"{self.name} wants ({', '.join(self.names)}), not {len(params)} arguments")
        return params

    def answer(self, value: Any) -> Any:
        """Return the result that a plain answer stands for.

        Raises:
            QuorumfsError: it does not fit; no RequestError, for the call may have been carried out.
        """
        try:
            return self.result(value)
        except Mismatch as error:
            raise QuorumfsError(f"the answer to {self.name} does not fit: {error}") from None


_METHODS: dict[Any, Method] = {}


def method_of(function: Callable[..., Any]) -> Method:
    """Return the compiled method of a table's function (compiled at the first use)."""
    method = _METHODS.get(function)
    if method is None:
        method = _METHODS[function] = _compile(function)
    return method


@functools.cache
def methods_of(table: type) -> dict[str, Method]:
    """Return all methods of a table class, by name; always the same dict, which nobody changes."""
    functions = inspect.getmembers(table, inspect.isfunction)
    return {name: method_of(function) for name, function in functions if not name.startswith("_")}


def check_implementation(method: Method, function: Callable[..., Any]) -> None:
    """Raise TypeError unless an implementation takes the parameters that the table declares."""
    of_class = getattr(function, "__func__", None)
    parameters = _parameters(function) if of_class is None else _parameters(of_class)[1:]
    names = tuple(parameter.name for parameter in parameters)
    if names != method.names:
        raise TypeError(f"{function!r} takes {names}, the table says {method.names}")
    defaults = tuple(p.default for p in parameters if p.default is not inspect.Parameter.empty)
    if defaults != method.defaults:
        raise TypeError(f"{function!r} has the defaults {defaults}, the table says {method.defaults}")


@functools.cache
def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _compile(function: Callable[..., Any]) -> Method:
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    defaults = tuple(p.default for p in parameters if p.default is not inspect.Parameter.empty)
    required = len(parameters) - len(defaults)
    kinds = [_xml_type(hints[parameter.name]) for parameter in parameters]
    returned = _xml_type(hints["return"])
    return Method(
        name=function.__name__,
        names=tuple(parameter.name for parameter in parameters),
        converters=tuple(converter(hints[parameter.name]) for parameter in parameters),
        required=required,
        result=converter(hints["return"]),
        help=inspect.getdoc(function) or "",
        signatures=[[returned, *kinds[:count]] for count in range(required, len(kinds) + 1)],
        defaults=defaults,
        convert_all=_of_list([hints[parameter.name] for parameter in parameters], list, lambda _: None),
    )


def converter(annotation: Any) -> Converter:
    """Return the converter of an annotation.

    Raises:
        TypeError: the annotation is none that may cross the wire.
    """
    if (simple := _SIMPLE.get(annotation)) is not None:
        return simple
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union) and len(arguments) == 2 and type(None) in arguments:
        return _optional(converter(next(kind for kind in arguments if kind is not type(None))))
    if origin is list:
        return _list_of(converter(arguments[0]))
    if origin is dict and arguments[0] is str:
        return _dict_of(converter(arguments[1]))
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return _named_tuple(annotation)
    raise TypeError(f"{annotation!r} cannot cross the wire")


def _kind(value: Any) -> str:
    return _WORDS.get(type(value), type(value).__name__)


def _integer(value: Any) -> int:
    if type(value) is int and SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        return value
    raise Mismatch("wants a 64-bit integer, not " + ("a larger one" if type(value) is int else _kind(value)))


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise Mismatch(f"wants a boolean, not {_kind(value)}")


def _float(value: Any) -> float:
    if type(value) is float or type(value) is int:
        return float(value)
    raise Mismatch(f"wants a number, not {_kind(value)}")


def _string(value: Any) -> str:
    if type(value) is str:
        return value
    raise Mismatch(f"wants a string, not {_kind(value)}")


def _bytes(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is str:  # what a stock XML-RPC client sends for a name
        return value.encode()
    if type(value) is memoryview:
        return bytes(value)
    raise Mismatch(f"wants bytes, not {_kind(value)}")


def _buffer(value: Any) -> Buffer:
    """Bytes that the method only looks at while it runs: they may lie in memory that the caller lends."""
    return value if type(value) is memoryview else _bytes(value)


def _nothing(value: Any) -> None:
    if value is not None:
        raise Mismatch(f"wants nothing, not {_kind(value)}")


def _anything(value: Any) -> Any:
    """Whatever can cross in both encodings: what came by one may be told again by the other."""
    _require_plain(value, DEEPEST)
    return value


def _require_plain(value: Any, deepest: int) -> None:
    kind = type(value)
    if kind is int:
        _integer(value)
    elif kind is list or kind is dict:
        if not deepest:
            raise Mismatch(f"wants values that lie no more than {DEEPEST} deep in each other")
        for item in _struct(value).values() if kind is dict else value:
            _require_plain(item, deepest - 1)
    elif kind not in _PLAIN:
        raise Mismatch(f"wants a plain value, not {_kind(value)}")


def _struct(value: Any) -> dict[str, Any]:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise Mismatch(f"wants a struct, not {_kind(value)}")
    return value


def _optional(convert: Converter) -> Converter:
    def optional(value: Any) -> Any:
        return None if value is None else convert(value)

    return optional


def _list_of(convert: Converter) -> Converter:
    def list_of(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Mismatch(f"wants a list, not {_kind(value)}")
        return [convert(item) for item in value]

    return list_of


def _dict_of(convert: Converter) -> Converter:
    def dict_of(value: Any) -> dict[str, Any]:
        return {key: convert(item) for key, item in _struct(value).items()}

    return dict_of


def _named_tuple(kind: Any) -> Converter:
    hints = typing.get_type_hints(kind)
    converters = [converter(hints[name]) for name in kind._fields]
    most, least = len(converters), len(converters) - len(kind._field_defaults)
    make = partial(tuple.__new__, kind)

    def named_tuple(value: Any) -> Any:
        if type(value) is not list or not least <= len(value) <= most:
            raise Mismatch(f"wants {kind.__name__}({', '.join(kind._fields)}), not {_kind(value)}")
        return kind(*[convert(item) for convert, item in zip(converters, value, strict=False)])

    return _of_list([hints[name] for name in kind._fields], make, named_tuple)


def _of_list(annotations: Sequence[Any], make: Callable[[Any], Any], otherwise: Converter) -> Converter:
    """Return a converter of lists of so many values; `make` takes what they stand for.

    It is composed as one function, since the calls of a function for each value are most of what a conversion
    costs. What it does not know (a list of another length, other types) is left to `otherwise`.
    """
    names = [f"item{index}" for index in range(len(annotations))]
    known: dict[str, Any] = {"make": make, "otherwise": otherwise}
    conditions, parts = ["True"], []
    for name, annotation in zip(names, annotations, strict=True):
        if (condition := _condition(name, annotation)) is not None:
            conditions.append(condition)
            parts.append(name)
        else:
            known[f"convert_{name}"] = converter(annotation)
            parts.append(f"convert_{name}({name})")
    source = (
        "def convert(value):\n"
        f"    if type(value) is list and len(value) == {len(names)}:\n"
        f"        [{', '.join(names)}] = value\n"
        f"        if {' and '.join(conditions)}:\n"
        f"            return make([{', '.join(parts)}])\n"
        "    return otherwise(value)\n"
    )
    exec(source, known)  # of nothing but what is in this module
    return known["convert"]  # type: ignore[no-any-return]


def _condition(name: str, annotation: Any) -> str | None:
    """Return an expression that tells whether a value stands for itself; None for other annotations."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union) and type(None) in arguments:
        inner = [_condition(name, kind) for kind in arguments if kind is not type(None)]
        return f"({name} is None or {inner[0]})" if len(inner) == 1 and inner[0] else None
    if annotation is int:
        return f"type({name}) is int and {SMALLEST_INTEGER} <= {name} <= {LARGEST_INTEGER}"
    if annotation == Buffer:
        return f"(type({name}) is bytes or type({name}) is memoryview)"
    if annotation in (bool, str, bytes, float):
        return f"type({name}) is {annotation.__name__}"
    return None


_SIMPLE: dict[Any, Converter] = {
    int: _integer,
    bool: _boolean,
    float: _float,
    str: _string,
    bytes: _bytes,
    Buffer: _buffer,
    Buffer | None: _optional(_buffer),
    None: _nothing,
    type(None): _nothing,
    Any: _anything,
}

_PLAIN = frozenset((type(None), bool, float, str, bytes, memoryview))

_WORDS: dict[type, str] = {
    type(None): "nothing",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    str: "a string",
    bytes: "bytes",
    list: "a list",
    dict: "a struct",
}

_XML_TYPES: dict[Any, str] = {
    int: "i8",
    bool: "boolean",
    float: "double",
    str: "string",
    bytes: "base64",
    type(None): "nil",
}


def _xml_type(annotation: Any) -> str:
    """Return the XML-RPC type that system.methodSignature names for an annotation."""
    for kind in typing.get_args(annotation):
        if typing.get_origin(annotation) in (types.UnionType, typing.Union) and kind is not type(None):
            return _xml_type(kind)
    if typing.get_origin(annotation) is dict or annotation is Any:
        return "struct"
    return _XML_TYPES.get(annotation, "array")
