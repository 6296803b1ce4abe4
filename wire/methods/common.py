"""What every server answers."""

from __future__ import annotations

from typing import Any

from wire.messages import Identity


class CommonMethods:
    """Offered by the mediator, the metadata server and every data server."""

    def identity(self) -> Identity:
        """Tell who this server is. Cheap: also used as the heartbeat between servers."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Tell how this server is, as plain data for people and programs."""
        raise NotImplementedError
