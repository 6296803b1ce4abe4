"""XML-RPC messages in and out, hardened: the one module that knows XML.

What is read: the standard types, <i8> and <nil/>; no DTD, entity, processing instruction or other
extension type (<ex:...>, <float>, <biginteger>, <dateTime.iso8601> ...); depth, count and lengths
are bounded. What is written, xmlrpc.client.ServerProxy(allow_none=True) reads: integers beyond 32
bit as <i8>, bytes as <base64>, None as <nil/>. Characters that XML cannot carry (most control
characters, lone surrogates) are written as backslash escapes: strings are for people, what must be exact
is bytes. Pure; safe in any thread. Source: http://xmlrpc.com/spec.md
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.parsers import expat

from wire.errors import BadRequest
from wire.table import LARGEST_INTEGER, SMALLEST_INTEGER

DEEPEST = 64
"""Values may lie in each other so deep."""
MOST_ELEMENTS = 1_000_000
"""A message may have so many elements."""

_BUFFER_BYTES = 256 * 1024


class Malformed(Exception):
    """What arrived is no XML-RPC message within the bounds; the message says why."""


# ---------------------------------------------------------------- writing

_UNCARRIABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_MARKUP = re.compile("[&<>\r]")
_REPLACEMENTS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}


def text_of(text: str) -> str:
    """Return a string as XML character data; what XML cannot carry becomes a backslash escape."""
    if _UNCARRIABLE.search(text):
        text = _UNCARRIABLE.sub(lambda found: _escape(ord(found[0])), text)
    return _MARKUP.sub(lambda found: _REPLACEMENTS[found[0]], text) if _MARKUP.search(text) else text


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def pack_request(method: str, params: Sequence[Any]) -> bytes:
    """Return the body of a request. Raises BadRequest if a parameter cannot cross the wire."""
    parts = [b"<?xml version='1.0'?>\n<methodCall><methodName>", text_of(method).encode()]
    parts.append(b"</methodName><params>")
    try:
        for value in params:
            parts.append(b"<param>")
            _write(value, parts, 0)
            parts.append(b"</param>")
    except (TypeError, OverflowError) as error:
        raise BadRequest(f"{method}: a parameter cannot be sent: {error}") from None
    parts.append(b"</params></methodCall>\n")
    return b"".join(parts)


def pack_answer(result: Any) -> bytes:
    """Return the body of an answer. Raises TypeError or OverflowError if the result cannot cross the wire."""
    parts = [b"<?xml version='1.0'?>\n<methodResponse><params><param>"]
    _write(result, parts, 0)
    parts.append(b"</param></params></methodResponse>\n")
    return b"".join(parts)


def pack_fault(fault_code: int, message: str) -> bytes:
    """Return the body of a fault."""
    parts = [b"<?xml version='1.0'?>\n<methodResponse><fault>"]
    _write({"faultCode": fault_code, "faultString": message}, parts, 0)
    parts.append(b"</fault></methodResponse>\n")
    return b"".join(parts)


def _write(value: Any, parts: list[bytes], depth: int) -> None:
    if depth >= DEEPEST:
        raise TypeError("values lie in each other too deep")
    kind = type(value)
    if kind is int:
        parts.append(_integer_element(value))
    elif kind is bytes or kind is bytearray or kind is memoryview:
        parts += (b"<value><base64>", binascii.b2a_base64(value, newline=False), b"</base64></value>")
    elif kind is str:
        parts.append(b"<value><string>%b</string></value>" % text_of(value).encode())
    elif kind is bool:
        parts.append(b"<value><boolean>%d</boolean></value>" % value)
    elif value is None:
        parts.append(b"<value><nil/></value>")
    elif isinstance(value, list | tuple):
        parts.append(b"<value><array><data>")
        for item in value:
            _write(item, parts, depth + 1)
        parts.append(b"</data></array></value>")
    elif kind is dict:
        _write_struct(value, parts, depth)
    elif kind is float:
        parts.append(b"<value><double>%b</double></value>" % repr(value).encode())
    elif isinstance(value, int):
        parts.append(_integer_element(int(value)))
    else:
        raise TypeError(f"{kind.__name__} has no place in XML-RPC")


def _write_struct(struct: dict[Any, Any], parts: list[bytes], depth: int) -> None:
    parts.append(b"<value><struct>")
    for name, value in struct.items():
        if type(name) is not str:
            raise TypeError(f"a struct's member is named by a string, not {type(name).__name__}")
        parts.append(b"<member><name>%b</name>" % text_of(name).encode())
        _write(value, parts, depth + 1)
        parts.append(b"</member>")
    parts.append(b"</struct></value>")


def _integer_element(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"<value><int>%d</int></value>" % value
    if SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        return b"<value><i8>%d</i8></value>" % value
    raise OverflowError("an integer of more than 64 bit")


# ---------------------------------------------------------------- reading


def unpack_request(body: bytes) -> tuple[str, list[Any]]:
    """Return a request's method and parameters. Raises Malformed."""
    reader = _Reader("methodCall")
    reader.read(body)
    if reader.method is None:
        raise Malformed("no methodName")
    return reader.method, reader.params


def unpack_answer(body: bytes) -> tuple[Any, tuple[int, str] | None]:
    """Return an answer's result and None, or None and its fault (code, message). Raises Malformed."""
    reader = _Reader("methodResponse")
    reader.read(body)
    if reader.fault:
        fault = reader.params[0] if reader.params else None
        code, text = (
            (fault.get("faultCode"), fault.get("faultString")) if type(fault) is dict else (None, None)
        )
        if type(code) is not int or type(text) is not str:
            raise Malformed("a fault without faultCode and faultString")
        return None, (code, text)
    if len(reader.params) != 1:
        raise Malformed("an answer has one value")
    return reader.params[0], None


def _read_integer(text: str) -> int:
    text = text.strip()
    if not _INTEGER.fullmatch(text):
        raise Malformed("not an integer")
    value = int(text)
    if not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        raise Malformed("an integer of more than 64 bit")
    return value


def _read_int4(text: str) -> int:
    value = _read_integer(text)
    if not -(2**31) <= value < 2**31:
        raise Malformed("an <int> of more than 32 bit; <i8> carries 64")
    return value


def _read_boolean(text: str) -> bool:
    if text.strip() not in ("0", "1"):
        raise Malformed("a boolean is 0 or 1")
    return text.strip() == "1"


def _read_double(text: str) -> float:
    if not _DOUBLE.fullmatch(text.strip()):
        raise Malformed("not a double")
    return float(text)


def _read_base64(text: str) -> bytes:
    try:
        packed = text.encode("ascii")
        if b"\n" in packed or b" " in packed or b"\r" in packed or b"\t" in packed:
            packed = packed.translate(None, b" \t\r\n")
        return binascii.a2b_base64(packed, strict_mode=True) if packed else b""
    except (binascii.Error, UnicodeEncodeError):
        raise Malformed("not base64") from None


def _read_nil(text: str) -> None:
    if text.strip():
        raise Malformed("nil has no contents")


_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_DOUBLE = re.compile(r"[+-]?(([0-9]++(\.[0-9]*+)?|\.[0-9]++)([eE][+-]?[0-9]++)?|inf|nan)")
"""Possessive: read in all other ways too, 100,000 digits with a letter behind them take minutes."""
_SCALARS: dict[str, Callable[[str], Any]] = {
    "int": _read_int4,
    "i4": _read_int4,
    "i8": _read_integer,
    "boolean": _read_boolean,
    "string": str,
    "double": _read_double,
    "base64": _read_base64,
    "nil": _read_nil,
}

_CHILDREN: dict[str, frozenset[str]] = {
    "methodCall": frozenset({"methodName", "params"}),
    "methodResponse": frozenset({"params", "fault"}),
    "fault": frozenset({"value"}),
    "params": frozenset({"param"}),
    "param": frozenset({"value"}),
    "value": frozenset({*_SCALARS, "array", "struct"}),
    "array": frozenset({"data"}),
    "data": frozenset({"value"}),
    "struct": frozenset({"member"}),
    "member": frozenset({"name", "value"}),
}
"""Which elements an element may hold; those that are not here hold text only."""

_AT_MOST_ONE = frozenset({"methodCall", "methodResponse", "fault", "param", "value", "array", "member"})
_NO_TEXT = frozenset(_CHILDREN) - {"value"}
_DEEPEST_ELEMENT = 4 * DEEPEST + 6


class _Element:
    """An element that is open: its name, how many children it had, and what it holds so far."""

    __slots__ = ("children", "items", "kind", "name")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.children = 0
        self.name: str | None = None
        self.items: Any = {} if kind == "struct" else []


class _Reader:
    """Reads one message by the events of expat; each value goes to the element around it."""

    def __init__(self, root: str) -> None:
        self.method: str | None = None
        self.params: list[Any] = []
        self.fault = False
        self._root = root
        self._open: list[_Element] = []
        self._text: list[str] = []
        self._elements = 0
        parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True
        parser.buffer_size = _BUFFER_BYTES
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = _refuse("a document type declaration")
        parser.EntityDeclHandler = _refuse("an entity declaration")
        parser.ExternalEntityRefHandler = _refuse("an external entity")
        parser.SkippedEntityHandler = _refuse("an unknown entity")
        parser.ProcessingInstructionHandler = _refuse("a processing instruction")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        self._parser = parser

    def read(self, body: bytes) -> None:
        """Read a whole message into `method`, `params` and `fault`. Raises Malformed."""
        try:
            self._parser.Parse(body, True)
        except expat.ExpatError as error:
            raise Malformed(f"no well-formed XML: {error}") from None
        finally:
            del self._parser  # it and its handlers refer to each other

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii", "ascii"):
            raise Malformed(f"the encoding {encoding[:20]!r}; only UTF-8 is read")

    def _start(self, kind: str, attributes: dict[str, str]) -> None:
        if not self._open:
            if kind != self._root:
                raise Malformed(f"<{kind[:40]}> instead of <{self._root}>")
        else:
            self._enter(self._open[-1], kind)
        if attributes:
            raise Malformed(f"<{kind[:40]}> with attributes")
        if len(self._open) >= _DEEPEST_ELEMENT:
            raise Malformed("values lie in each other too deep")
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise Malformed("too many elements")
        self._open.append(_Element(kind))

    def _enter(self, parent: _Element, kind: str) -> None:
        if kind not in _CHILDREN.get(parent.kind, ()):
            raise Malformed(f"<{kind[:40]}> in <{parent.kind}>")
        if parent.children and parent.kind in _AT_MOST_ONE and not _may_follow(parent, kind):
            raise Malformed(f"more than one element in <{parent.kind}>")
        self._drop_blanks(parent.kind)
        parent.children += 1

    def _drop_blanks(self, where: str) -> None:
        """Forget the text before an element: it may be blanks only."""
        if self._text and "".join(self._text).strip():
            raise Malformed(f"text in <{where}>")
        self._text.clear()

    def _end(self, kind: str) -> None:
        element = self._open.pop()
        if kind in _SCALARS:
            self._give(_SCALARS[kind]("".join(self._text)))
            self._text.clear()
        elif kind == "value":
            if element.children:
                self._drop_blanks(kind)
            else:  # a value without a type is a string
                element.items.append("".join(self._text))
                self._text.clear()
            self._give(element.items[0])
        elif kind == "name":
            self._open[-1].name = "".join(self._text)
            self._text.clear()
        elif kind == "methodName":
            self.method = "".join(self._text)
            self._text.clear()
        else:
            self._end_of_container(kind, element)

    def _end_of_container(self, kind: str, element: _Element) -> None:
        self._drop_blanks(kind)
        if kind in ("struct", "data"):
            self._give(element.items)
        elif kind == "array":
            self._give(_only(element, kind))
        elif kind == "param":
            self.params.append(_only(element, kind))
        elif kind == "fault":
            self.fault = True
            self.params = [_only(element, kind)]
        elif kind == "member":
            if element.name is None:
                raise Malformed("a struct's member without a name")
            self._open[-1].items[element.name] = _only(element, kind)

    def _give(self, value: Any) -> None:
        self._open[-1].items.append(value)


def _may_follow(parent: _Element, kind: str) -> bool:
    if parent.kind == "member":
        return kind == "value" and parent.name is not None and parent.children == 1
    return parent.kind == "methodCall" and kind == "params" and parent.children == 1


def _only(element: _Element, kind: str) -> Any:
    if len(element.items) != 1:
        raise Malformed(f"<{kind}> holds one value")
    return element.items[0]


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> None:
        raise Malformed(f"{what} is not read here")

    return refuse
