"""The clock of what a mount may rely on, and for how long: it goes on while the machine sleeps.

The monotonic clock stands still then, and other machines do not: after an hour of sleep a mount would count
its session and its locks as its own still. How long a call or a pause takes is of the monotonic clock, as
anywhere. Safe in any thread.
"""

from __future__ import annotations

import time


def seconds_passed() -> float:
    """Return the time since some moment, in seconds, those in which the machine slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
