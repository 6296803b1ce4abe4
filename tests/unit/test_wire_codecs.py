"""Both codecs carry every value of the wire faithfully, by examples made up at random."""

from __future__ import annotations

import random
import re
import xmlrpc.client
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import msgpack_codec, msgpack_long, xml_codec
from wire.errors import BadRequest, ReadRefused

INTEGERS = st.integers(-(2**63), 2**63 - 1)
CARRIABLE = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\r"), max_size=30
).filter(lambda text: not re.search("[\ufffe\uffff]", text))
SCALARS = (
    st.none()
    | st.booleans()
    | INTEGERS
    | st.floats(allow_nan=False)
    | CARRIABLE
    | st.binary(max_size=300)
    | st.just(bytes(20_000))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(CARRIABLE, inner, max_size=5),
    max_leaves=20,
)
MESSAGES = st.lists(VALUES, max_size=5)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types throughout (True is not 1)."""
    if type(left) is not type(right) or left != right:
        return False
    if isinstance(left, list):
        return all(map(same, left, right))
    return not isinstance(left, dict) or all(same(left[key], right[key]) for key in left)


def join(buffers: list[msgpack_codec.Buffer]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def feed(decoder: msgpack_codec.Decoder, data: bytes) -> int:
    """Let as much arrive as there is room for; return how much."""
    room = decoder.room()
    count = min(len(room), len(data))
    room[:count] = data[:count]
    decoder.received(count)
    return count


def decode(data: bytes, pieces: random.Random | None = None) -> list[list[Any]]:
    decoder = msgpack_codec.Decoder(msgpack_codec.Workbench(2**22, strict=True))
    messages = []
    while data:
        length = len(data) if pieces is None else pieces.randrange(1, len(data) + 1)
        data = data[feed(decoder, data[:length]) :]
        while (message := decoder.next()) is not None:
            messages.append(message)
    assert decoder.pending_bytes == 0
    return messages


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGES, max_size=4), st.randoms(use_true_random=False))
def test_messagepack_in_any_pieces(messages: list[list[Any]], pieces: random.Random) -> None:
    encoder = msgpack_codec.Encoder()
    data = b"".join(join(encoder.request(number, "m", params)) for number, params in enumerate(messages))
    decoded = decode(data, pieces)
    assert [message[:3] for message in decoded] == [[0, number, "m"] for number in range(len(messages))]
    assert all(same(message[3], params) for message, params in zip(decoded, messages, strict=True))


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_xml_requests_and_answers(params: list[Any]) -> None:
    name, back = xml_codec.unpack_request(xml_codec.pack_request("m", params))
    assert name == "m" and same(back, params)
    result, fault = xml_codec.unpack_answer(xml_codec.pack_answer(params))
    assert fault is None and same(result, params)


@settings(max_examples=100, deadline=None)
@given(MESSAGES)
def test_the_standard_library_reads_our_answers(params: list[Any]) -> None:
    (back,), method = xmlrpc.client.loads(xml_codec.pack_answer(params), use_builtin_types=True)
    assert method is None and same(back, params)


SMALL = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats(allow_nan=False)
    | CARRIABLE
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(CARRIABLE, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(SMALL, max_size=5))
def test_we_read_what_the_standard_library_writes(params: list[Any]) -> None:
    # It writes a carriage return as it is, which every XML parser reads as a newline.
    packed = xmlrpc.client.dumps(tuple(params), "m", allow_none=True).encode()
    name, back = xml_codec.unpack_request(packed.replace(b"\r", b"&#13;"))
    assert name == "m" and same(back, params)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x94\x00\x01\xa1m" + tail))
def test_random_bytes_are_malformed_at_worst(data: bytes) -> None:
    decoder = msgpack_codec.Decoder(msgpack_codec.Workbench(1000, strict=True))
    feed(decoder, data)
    try:
        while decoder.next() is not None:
            pass
    except msgpack_long.Malformed:
        pass
    with pytest.raises(xml_codec.Malformed):
        xml_codec.unpack_request(data)


def test_what_xml_cannot_carry_is_escaped_not_refused() -> None:
    text = "a\0b\x1bc\ud800d\uffffe"
    result, _ = xml_codec.unpack_answer(xml_codec.pack_answer({text: text}))
    assert result == {r"a\x00b\x1bc\ud800d\uffffe": r"a\x00b\x1bc\ud800d\uffffe"}
    assert xml_codec.unpack_answer(xml_codec.pack_fault(5, text))[1] == (5, r"a\x00b\x1bc\ud800d\uffffe")


def test_a_lone_surrogate_is_escaped_in_messagepack_too() -> None:
    assert decode(join(msgpack_codec.Encoder().answer(1, "a\ud800")))[0][3] == r"a\ud800"


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, object(), {1, 2}, 1j])
def test_what_cannot_cross_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(BadRequest, match="m: a parameter cannot be sent"):
        msgpack_codec.Encoder().request(1, "m", [value])
    with pytest.raises(BadRequest, match="m: a parameter cannot be sent"):
        xml_codec.pack_request("m", [value])


def test_an_encoder_goes_on_after_a_failure() -> None:
    encoder = msgpack_codec.Encoder()
    for bad in ([1, "x" * 100, object()], [bytes(50_000), object()]):
        with pytest.raises(BadRequest):
            encoder.request(1, "m", bad)
    assert decode(join(encoder.request(2, "m", [b"ok"]))) == [[0, 2, "m", [b"ok"]]]


def test_long_bytes_are_not_copied_into_the_message() -> None:
    data = bytes(1024 * 1024)
    encoder = msgpack_codec.Encoder()
    for params in ([b"b", b"d", data, True], [1, [b"x", data], 2], [(1, b"", data)]):
        buffers = encoder.request(1, "put", params)
        assert any(buffer is data for buffer in buffers)
        assert sum(len(buffer) for buffer in buffers) < len(data) + 100
        assert decode(join(buffers))[0][3] == [list(v) if isinstance(v, tuple) else v for v in params]


LENGTHS = (0, 1000, 16 * 1024 - 1, 16 * 1024, 66_000, 2**17)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("crowd", [0, 100], ids=["few items", "many items"])
def test_long_bytes_in_any_pieces(seed: int, crowd: int) -> None:
    pieces = random.Random(seed)

    def some_bytes() -> bytes:
        return pieces.randbytes(pieces.choice(LENGTHS))

    def params() -> list[Any]:
        values: list[Any] = [some_bytes() for _ in range(pieces.randrange(4))]
        return [*values, [some_bytes() for _ in range(pieces.randrange(4))], *[7] * crowd, "end"]

    messages = [params() for _ in range(3)]
    encoder = msgpack_codec.Encoder()
    data = b"".join(join(encoder.request(number, "m", params)) for number, params in enumerate(messages))
    assert [message[3] for message in decode(data, pieces)] == messages


def test_bytes_before_and_after_too_many_items_arrive() -> None:
    params = [b"a" * 50_000, *range(70), b"b" * 50_000, "c" * 50_000, {"d": b"e" * 50_000}]
    data = join(msgpack_codec.Encoder().request(1, "m", params))
    assert decode(data * 2) == [[0, 1, "m", params]] * 2


@pytest.mark.parametrize("code", [0, 1])
def test_an_extension_does_not_pass_for_long_bytes(code: int) -> None:
    extension = bytes((0xD6, code, 0, 0, 0, 0))
    data = b"\x94\x00\x01\xa1m\x92" + b"\xc6\x00\x01\x00\x00" + bytes(2**16) + extension
    with pytest.raises(msgpack_long.Malformed):
        decode(data)
    with pytest.raises(msgpack_long.Malformed):
        decode(b"\x94\x00\x01\xa1m\x91" + extension)


def test_a_message_over_the_bound_is_malformed() -> None:
    decoder = msgpack_codec.Decoder(msgpack_codec.Workbench(1000))
    feed(decoder, b"\x94\x00\x01\xa1m\x91\xc5\x08\x00" + bytes(995))
    with pytest.raises(msgpack_long.Malformed, match="over 1000 bytes"):
        decoder.next()


@pytest.mark.parametrize("value", [b"\x90", b"\x80", b"\xc0"], ids=["lists", "maps", "nils"])
def test_a_message_of_very_many_values_is_malformed(value: bytes) -> None:
    """Each takes more memory than bytes in the message; as many as the bound are read, again and again."""
    most = 2**22 // msgpack_codec.BYTES_A_VALUE

    def message(values: int) -> bytes:
        full, rest = divmod(values, 60_000)
        lists = [b"\xdc" + (60_000).to_bytes(2, "big") + value * 60_000] * full
        return b"\x94\x00\x01\xa1m\xdc" + (full + rest).to_bytes(2, "big") + b"".join(lists) + value * rest

    whole = message(most // 2 - 100)
    small = b"\x94\x00\x01\xa1m\x91\xc0"
    assert [len(read[3]) for read in decode((whole + small) * 3)] == [len(decode(whole)[0][3]), 1] * 3
    with pytest.raises(msgpack_long.Malformed, match="values"):
        decode(message(most + 1))


def test_an_error_whose_detail_cannot_cross_still_crosses() -> None:
    error = ReadRefused("no", {"odd": object()})
    message = decode(join(msgpack_codec.Encoder().error(7, error)))[0]
    back = msgpack_codec.error_of(message[2])
    assert type(back) is ReadRefused and back.message == "no" and back.detail == {}


@pytest.mark.parametrize("fault", [5, "text", [], [1, 2, 3], [501, "no"], ["501", "no", {}]])
def test_a_foreign_error_is_an_error(fault: Any) -> None:
    assert "none of ours" in str(msgpack_codec.error_of(fault))
