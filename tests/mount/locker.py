"""A program that locks: obeys one command a line on standard input, answers each with one line.

    open PATH | close | read COUNT | write TEXT | fsync
    lock KIND MODE [START LENGTH] [wait] | unlock KIND [START LENGTH] | test MODE START LENGTH

KIND is fcntl or flock, MODE shared or exclusive. The answer is "ok", a value, or the name of an errno.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import sys

LAYOUT = "hhqqi4x"


def record(kind: int, start: int, length: int) -> bytes:
    return struct.pack(LAYOUT, kind, 0, start, length, 0)


def obey(words: list[str], files: list[int]) -> str:
    command, *rest = words
    if command == "open":
        files.append(os.open(rest[0], os.O_RDWR | os.O_CREAT, 0o644))
        return "ok"
    file = files[-1]
    wait = "wait" in rest
    numbers = [int(word) for word in rest if word.isdigit()] or [0, 0]
    match command:
        case "close":
            os.close(files.pop())
        case "lock" | "unlock":
            if rest[0] == "flock":
                mode = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}
                what = fcntl.LOCK_UN if command == "unlock" else mode[rest[1]]
                fcntl.flock(file, what | (0 if wait else fcntl.LOCK_NB))
            else:
                kinds = {"shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK}
                what = fcntl.F_UNLCK if command == "unlock" else kinds[rest[1]]
                fcntl.fcntl(file, fcntl.F_SETLKW if wait else fcntl.F_SETLK, record(what, *numbers))
        case "test":
            kinds = {"shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK}
            found = fcntl.fcntl(file, fcntl.F_GETLK, record(kinds[rest[0]], *numbers))
            kind, _, start, length, pid = struct.unpack(LAYOUT, found)
            names = {fcntl.F_UNLCK: "free", fcntl.F_RDLCK: "shared", fcntl.F_WRLCK: "exclusive"}
            return f"{names[kind]} {start} {length} {pid}" if kind != fcntl.F_UNLCK else "free"
        case "read":
            return os.pread(file, int(rest[0]), 0).decode() or "nothing"
        case "write":
            os.pwrite(file, rest[0].encode(), 0)
        case "fsync":
            os.fsync(file)
    return "ok"


def interrupted(_number: int, _frame: object) -> None:
    raise OSError(errno.EINTR, "interrupted")


def main() -> None:
    signal.signal(signal.SIGUSR1, interrupted)
    files: list[int] = []
    for line in sys.stdin:
        try:
            answer = obey(line.split(), files)
        except OSError as error:
            answer = "EDEADLK" if error.errno == errno.EDEADLK else errno.errorcode[error.errno or 0]
        print(answer, flush=True)


if __name__ == "__main__":
    main()
