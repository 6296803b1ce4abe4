"""What an XML-RPC call over HTTP sends beside its body, and what an answer stands for. No HTTP library."""

from __future__ import annotations

from typing import Any

from wire import xml_codec
from wire.errors import BadRequest, MessageTooLarge, QuorumfsError, from_fault
from wire.fault_detail import unpack_detail

HTTP_HEADERS = {"Content-Type": "text/xml", "User-Agent": "quorumfs"}


def result_of(name: str, status: int, detail: str | None, body: bytes) -> Any:
    """Return the result that an HTTP answer carries. Raises the QuorumfsError that it carries instead.

    A RequestError only if the call was not carried out for certain.
    """
    if status == 413:
        raise MessageTooLarge(f"{name}: {body.decode(errors='replace').strip()}")
    if status != 200:
        refused = BadRequest if 400 <= status < 500 else QuorumfsError
        raise refused(f"{name}: HTTP status {status}: {body[:200].decode(errors='replace').strip()}")
    try:
        result, fault = xml_codec.unpack_answer(body)
    except xml_codec.Malformed as error:
        raise QuorumfsError(f"{name}: the answer is not XML-RPC: {error}") from None
    if fault is not None:
        raise from_fault(fault[0], fault[1], unpack_detail(detail))
    return result
