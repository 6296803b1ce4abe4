"""The thresholds N, Qr and Qw, and which of them can work. Pure; safe in any thread.

The one place where a quorum is judged valid. Source of the rule Qr + Qw > N: D. K. Gifford,
Weighted voting for replicated data, SOSP 1979.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quorum:
    """N data servers, of which Qr must vouch for a read and Qw must hold a write.

    Raises:
        ValueError: the setting cannot work; the message says why and what to do.
    """

    servers: int
    read: int
    write: int

    def __post_init__(self) -> None:
        for name, value in (("N", self.servers), ("Qr", self.read), ("Qw", self.write)):
            if type(value) is not int:
                raise ValueError(f"{name}={value!r}: choose a whole number")
        if self.servers < 1:
            raise ValueError(f"N={self.servers}: a cluster needs at least one data server")
        for name, value in (("read quorum Qr", self.read), ("write quorum Qw", self.write)):
            if not 1 <= value <= self.servers:
                raise ValueError(
                    f"{name}={value} does not fit N={self.servers} data servers: "
                    f"choose a number from 1 to {self.servers}"
                )
        if self.read + self.write <= self.servers:
            raise ValueError(
                f"Qr={self.read} + Qw={self.write} does not exceed N={self.servers}: a read could miss the "
                f"last write; raise Qr to {self.servers - self.write + 1} "
                f"or Qw to {self.servers - self.read + 1}"
            )
