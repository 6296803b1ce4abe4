"""The ports over the wire: no call names more than a message may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusefs.remote import RemoteBlocks
from wire.config import Deadlines
from wire.messages import BlockRecord
from wire.methods import MediatorMethods, NamespaceMethods
from wire.msgpack_long import LONGEST_ARRAY


class Recorder:
    """Stands for the client, the session and the patience of a mount; notes what calls name last."""

    number = 1

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []

    def call(self, seconds: float, method: Any, *params: Any) -> None:
        self.calls.append((method, params[-1]))

    def persist(self, call: Callable[[], Any]) -> Any:
        return call()

    def go_on(self, seconds: float) -> None: ...

    def owns(self, block: bytes) -> bool:
        return True


def test_many_blocks_are_synced_and_abandoned_by_several_calls() -> None:
    """A file of 64 GiB that is written anew has more of them than a message may name."""
    mount: Any = Recorder()
    blocks = RemoteBlocks(mount, mount, Deadlines(), mount)
    ids = [number.to_bytes(16, "big") for number in range(LONGEST_ARRAY + 1)]
    records = [BlockRecord(block, 1, bytes(32)) for block in ids]
    for call, method, many in (
        (blocks.sync_blocks, MediatorMethods.sync_blocks, ids),
        (blocks.abandon, NamespaceMethods.abandon_blocks, records),
    ):
        mount.calls.clear()
        call(many)
        assert {made for made, _ in mount.calls} == {method}
        assert max(len(named) for _, named in mount.calls) < LONGEST_ARRAY
        assert [each for _, named in mount.calls for each in named] == many
        mount.calls.clear()
        call([])
        assert not mount.calls
