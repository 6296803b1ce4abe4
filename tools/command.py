"""What is run as `quorumfs`: the command line, which Ctrl-C ends quietly from the first import on.

It must import nothing of the project before that.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> int:
    """Run one command and return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from tools import cli

    return cli.main()


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)  # nothing has begun


if __name__ == "__main__":
    raise SystemExit(main())
