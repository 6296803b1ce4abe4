"""The edges that POSIX and Linux name: long paths, far offsets, odd flags, and with what errno is refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.work import listing, run

FAR = 2**63 - 1
"""The largest offset that there is; a file has at most so many bytes."""
LIBRARY = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT = 0x01, 0x02, 0x08, 0x10, 0x20
ACCESS_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry) for entry in ((1, 6, 2**32 - 1), (4, 4, 2**32 - 1), (32, 4, 2**32 - 1))
)


def error_of(call: Callable[..., Any], *words: Any, **named: Any) -> str:
    """Return the name of the errno with which a call fails."""
    with pytest.raises(OSError) as refused:
        call(*words, **named)
    return errno.errorcode[refused.value.errno or 0]


def fallocate(file: int, mode: int, offset: int, length: int) -> None:
    if LIBRARY.fallocate(file, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def test_a_path_of_4095_bytes(here: Path) -> None:
    (here / "deep").mkdir()
    place, length = os.open(here / "deep", os.O_RDONLY), 4
    while length < 4095 - 512:
        os.mkdir("p" * 255, dir_fd=place)
        place, above = os.open("p" * 255, os.O_RDONLY, dir_fd=place), place
        os.close(above)
        length += 256
    directories, last = (length - 4) // 256, 4095 - length - 2
    os.mkdir("q" * (last - 250), dir_fd=place)
    path = "/".join(["deep", *["p" * 255] * directories, "q" * (last - 250), "r" * 250])
    assert len(path) == 4095
    os.close(place)
    script = f"""
import os
path = {path!r}
with open(path, "w") as file:
    file.write("deep")
os.rename(path, path[:-1] + "s")
assert open(path[:-1] + "s").read() == "deep"
try:
    os.stat(path + "r")
except OSError as error:
    assert error.strerror == "File name too long", error
else:
    raise AssertionError("a path of 4096 bytes was followed")
"""
    subprocess.run([sys.executable, "-c", script], cwd=here, check=True, timeout=60)
    run(here, "rm -r deep")
    assert listing(here) == []


def test_the_last_byte_that_a_file_can_have(here: Path) -> None:
    file = os.open(here / "far", os.O_RDWR | os.O_CREAT)
    assert os.pwrite(file, b"z", FAR - 1) == 1
    # The kernel refuses these by itself, on every file system.
    assert error_of(os.pwrite, file, b"z", FAR) == "EINVAL"
    assert error_of(os.pwrite, file, b"zzz", FAR - 1) == "EINVAL"
    assert error_of(fallocate, file, 0, FAR - 10, 100) == "EFBIG"
    for _ in range(2):
        assert os.fstat(file).st_size == FAR
        assert os.pread(file, 1, FAR - 1) == b"z"
        assert os.pread(file, 4, 2**62) == bytes(4)
        assert os.lseek(file, 0, os.SEEK_DATA) == FAR - 1
        os.close(file)
        os.setxattr(here, "user.quorumfs.drop_caches", b"")
        file = os.open(here / "far", os.O_RDWR)
    os.ftruncate(file, 5)
    os.ftruncate(file, FAR)
    assert os.fstat(file).st_size == FAR
    os.close(file)
    run(
        here,
        "ulimit -f 1000; trap '' XFSZ; ! head -c 2000000 /dev/zero 2> said > limited; grep 'too large' said",
    )
    assert (here / "limited").stat().st_size == 1_024_000


def test_fallocate_of_more_than_there_is(here: Path) -> None:
    room = os.statvfs(here)
    with (here / "file").open("wb") as file:
        for mode in (0, KEEP_SIZE, ZERO):
            assert error_of(fallocate, file.fileno(), mode, 0, 2 * room.f_bavail * room.f_frsize) == "ENOSPC"
        assert os.fstat(file.fileno()).st_size == 0
        fallocate(file.fileno(), 0, 0, room.f_bavail * room.f_frsize // 2)


def test_fallocate(here: Path) -> None:
    file = os.open(here / "a", os.O_RDWR | os.O_CREAT)
    os.write(file, b"x" * 100_000)
    fallocate(file, KEEP_SIZE, 0, 1 << 30)
    assert os.fstat(file).st_size == 100_000
    fallocate(file, 0, 0, 200_000)
    fallocate(file, PUNCH_HOLE | KEEP_SIZE, 1_000, 5_000)
    fallocate(file, ZERO, 50_000, 10_000)
    fallocate(file, ZERO | KEEP_SIZE, 190_000, 100_000)
    expected = bytearray(b"x" * 100_000 + bytes(100_000))
    expected[1_000:6_000] = bytes(5_000)
    expected[50_000:60_000] = bytes(10_000)
    for _ in range(2):
        assert os.pread(file, 300_000, 0) == expected
        os.fsync(file)
        os.close(file)
        os.setxattr(here, "user.quorumfs.drop_caches", b"")
        file = os.open(here / "a", os.O_RDWR)
    fallocate(file, ZERO, 190_000, 100_000)
    assert os.fstat(file).st_size == 290_000
    for mode in (PUNCH_HOLE, COLLAPSE, INSERT, 0x40):
        assert error_of(fallocate, file, mode, 0, 4096) == "ENOTSUP", mode
    assert error_of(fallocate, file, 0, -1, 10) == "EINVAL"
    assert error_of(fallocate, file, 0, 0, 0) == "EINVAL"
    os.close(file)


def test_direct_and_synchronous_writes(here: Path) -> None:
    block = mmap.mmap(-1, 1 << 20)  # its address is aligned, as O_DIRECT wants it
    block[:] = os.urandom(1 << 20)
    for number, flag in enumerate((os.O_DIRECT, os.O_SYNC, os.O_DSYNC, os.O_DIRECT | os.O_SYNC)):
        place = here / str(number)
        file = os.open(place, os.O_RDWR | os.O_CREAT | flag)
        assert os.writev(file, [block]) == 1 << 20
        # What a buffered reader sees, and what direct reads see of buffered writes.
        assert place.read_bytes() == block[:]
        with place.open("r+b") as buffered:
            buffered.write(b"start")
        assert os.preadv(file, [block], 0) == 1 << 20
        assert block[:5] == b"start"
        os.close(file)
        assert place.read_bytes() == block[:]


def test_shared_maps_of_two_processes(here: Path) -> None:
    (here / "map").write_bytes(bytes(1 << 20))
    with (here / "map").open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        script = """
import mmap, sys
with open("map", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
    assert view[0:6] == b"parent"
    view[500000:500005] = b"child"
"""
        view[0:6] = b"parent"
        subprocess.run([sys.executable, "-c", script], cwd=here, check=True, timeout=60)
        assert view[500_000:500_005] == b"child"
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as private:
            private[0:6] = b"nobody"
        assert view[0:6] == b"parent"
        view.flush()
    os.setxattr(here, "user.quorumfs.drop_caches", b"")
    data = (here / "map").read_bytes()
    assert (data[:6], data[500_000:500_005], len(data)) == (b"parent", b"child", 1 << 20)


def test_special_files(here: Path) -> None:
    os.mkfifo(here / "pipe")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        place = os.open(here, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{place}/socket")
        server.listen()
        client.connect(f"/proc/self/fd/{place}/socket")
        os.close(place)
    assert stat.S_ISSOCK((here / "socket").stat().st_mode)
    run(here, 'cat pipe > out & echo through > pipe; wait; test "$(cat out)" = through')
    if os.geteuid() == 0:
        os.mknod(here / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        assert (here / "null").stat().st_rdev == os.makedev(1, 3)
        assert error_of(os.open, here / "null", os.O_RDONLY) == "EACCES"


@pytest.mark.parametrize("how", ["rm fifo", "mkfifo other; mv -f other fifo"])
def test_a_fifo_that_is_open_and_removed(here: Path, how: str) -> None:
    told = run(
        here,
        f"mkfifo -m 640 fifo; exec 3<>fifo; {how}; echo 1234 >&3; head -n 1 <&3; stat -Lc %A:%h /dev/fd/3; "
        "chmod 604 /dev/fd/3; touch -d @5 /dev/fd/3; stat -Lc %A:%h:%Y /dev/fd/3",
    )
    assert told == "1234\nprw-r-----:0\nprw----r--:0:5\n"


def test_the_room_is_that_of_the_servers(here: Path, tmp_path: Path) -> None:
    before, disk = os.statvfs(here), os.statvfs(tmp_path)
    assert before.f_namemax == 255
    assert 0 < before.f_bavail <= before.f_bfree <= before.f_blocks
    assert before.f_bavail * before.f_frsize <= disk.f_bavail * disk.f_frsize + (1 << 30)
    assert before.f_blocks * before.f_frsize <= disk.f_blocks * disk.f_frsize
    for number in range(50):
        (here / f"{number}").touch()
    after = os.statvfs(here)
    # An inode that was removed before this test may have gone only now.
    assert (after.f_files - after.f_ffree) - (before.f_files - before.f_ffree) in range(40, 51)
    assert after.f_ffree > 0
    (here / "small").write_bytes(b"x")
    (here / "large").write_bytes(bytes(1_000_000))
    assert (here / "small").stat().st_blocks in range(1, 9)
    assert (here / "large").stat().st_blocks in range(1_000_000 // 512, 1_004_000 // 512)


def test_set_id_bits_and_sticky_directories(here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    here.chmod(0o755)
    run(
        here,
        """
        as_user() { setpriv --reuid 65534 --regid 65534 --clear-groups bash -c "$1"; }
        for change in 'echo more >> file' 'truncate -s 1 file' ': > file' 'printf x 1<> file' \
            'fallocate -l 9000 file' "perl -e 'truncate(\\"file\\", 1) or die'" \
            'dd if=/dev/zero of=file oflag=direct conv=notrunc bs=4096 count=1 2> /dev/null'; do
            rm -f file; echo start > file; chown 65534:65534 file; chmod 6755 file
            test "$(stat -c %a file)" = 6755
            as_user "$change"
            test "$(stat -c %a file)" = 755
            chmod 6755 file; bash -c "$change"
            test "$(stat -c %a file)" = 6755
        done
        chmod 6755 file; chown 1:1 file; test "$(stat -c %a file)" = 755
        for groups in --clear-groups '--groups 7'; do
            chown 65534:7 file; chmod 6745 file
            setpriv --reuid 65534 --regid 65534 $groups bash -c 'echo more >> file'
            stat -c %a file >> kept
        done
        test "$(cat kept)" = $'745\n2745'
        mkdir sticky; chmod 1777 sticky; echo roots > sticky/roots
        as_user 'echo mine > sticky/mine'
        ! as_user 'rm -f sticky/roots' 2> said; grep 'not permitted' said
        ! as_user 'mv sticky/roots sticky/moved' 2> said; grep 'not permitted' said
        ! as_user 'mv sticky/mine sticky/roots' 2> said; grep 'not permitted' said
        as_user 'mv sticky/mine sticky/moved; rm sticky/moved'
        """,
    )
    assert os.listdir(here / "sticky") == ["roots"]  # noqa: PTH208


def test_a_write_takes_away_what_was_given_since_the_last_one(here: Path) -> None:
    """The kernel notes that there was nothing to take away, and need not ask again."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # CAP_NET_RAW, as in capability.h

    def write() -> None:
        subprocess.run(["printf", "x"], stdout=file, user=NOBODY, group=NOBODY, extra_groups=[], check=True)

    with (here / "a").open("wb", buffering=0) as file:
        for _ in range(3):
            write()
            (here / "a").chmod(0o6755)
            os.setxattr(here / "a", "security.capability", capability)
            write()
            assert stat.S_IMODE((here / "a").stat().st_mode) == 0o755
            assert os.listxattr(here / "a") == []


def test_extended_attributes_of_other_kinds_are_refused(here: Path) -> None:
    file = here / "a"
    file.touch()
    for name in ("system.posix_acl_access", "system.posix_acl_default", "other.name", "user"):
        value = ACCESS_LIST if "acl" in name else b"value"
        target = here if "default" in name else file
        assert error_of(os.setxattr, target, name, value) == "ENOTSUP", name
        assert error_of(os.getxattr, target, name) == "ENOTSUP", name
        assert error_of(os.removexattr, target, name) == "ENOTSUP", name
    assert error_of(os.setxattr, file, "user.", b"") == "EINVAL"
    assert error_of(os.setxattr, file, "user." + "n" * 251, b"") == "ERANGE"
    assert error_of(os.setxattr, file, "user.a", b"", os.XATTR_REPLACE) == "ENODATA"
    assert error_of(os.setxattr, file, "user.a", b"v" * 65_537) == "E2BIG"
    os.setxattr(file, "user.a", b"v" * 65_536)
    assert os.getxattr(file, "user.a") == b"v" * 65_536
    (here / "link").symlink_to("a")
    assert error_of(os.setxattr, here / "link", "user.a", b"", follow_symlinks=False) == "EPERM"


def test_trusted_attributes_are_told_to_root_only(here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can set them")
    for name in ("trusted.a", "security.b", "user.c"):
        os.setxattr(here, name, b"1")
    assert sorted(os.listxattr(here)) == ["security.b", "trusted.a", "user.c"]
    here.chmod(0o755)
    found = run(here, "setpriv --reuid 65534 --regid 65534 --clear-groups getfattr -m - .").split()
    assert [line for line in found if "." in line[1:]] == ["security.b", "user.c"]


def test_what_cannot_be_done_is_refused(here: Path) -> None:
    (here / "a").write_text("a")
    assert error_of(os.open, here, os.O_TMPFILE | os.O_RDWR) == "ENOTSUP"
    with (here / "a").open() as source, (here / "b").open("w") as target:
        assert error_of(fcntl.ioctl, target, 0x40049409, source.fileno()) == "ENOTSUP"  # FICLONE
        assert error_of(fcntl.ioctl, source, 0x80086601, bytes(8)) == "ENOTTY"  # FS_IOC_GETFLAGS


def test_inotify_tells_of_this_mounts_changes(here: Path) -> None:
    watcher = LIBRARY.inotify_init1(os.O_NONBLOCK)
    assert LIBRARY.inotify_add_watch(watcher, os.fsencode(here), 0xFFF) >= 0
    (here / "a").write_text("text")
    (here / "a").rename(here / "b")
    (here / "b").unlink()
    data, seen = os.read(watcher, 65536), []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        name, data = data[16 : 16 + length].rstrip(b"\0").decode(), data[16 + length :]
        seen += [(mask, name)] if mask in (0x100, 0x2, 0x8, 0x40, 0x80, 0x200) else []
    os.close(watcher)
    assert seen == [(0x100, "a"), (0x2, "a"), (0x8, "a"), (0x40, "a"), (0x80, "b"), (0x200, "b")]


def test_record_locks_of_this_mount(here: Path) -> None:
    with (here / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
        script = """
import fcntl
with open("lock", "r+") as file:
    for start, free in ((0, True), (105, False), (110, True)):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, start)
        except BlockingIOError:
            assert not free
        else:
            assert free
"""
        subprocess.run([sys.executable, "-c", script], cwd=here, check=True, timeout=60)


def test_the_kernel_asks_for_a_whole_block_when_it_reads_ahead(here: Path) -> None:
    device = here.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert setting.read_text().strip() == "1024"


def test_extended_attributes_of_an_open_directory_that_was_removed(here: Path) -> None:
    """They said ESTALE, which no program expects of a local file system."""
    (here / "gone").mkdir()
    handle = os.open(here / "gone", os.O_RDONLY)
    try:
        (here / "gone").rmdir()
        assert error_of(os.setxattr, handle, "user.a", b"1") == "ENOENT"
        assert error_of(os.removexattr, handle, "user.a") == "ENODATA"
        assert error_of(os.getxattr, handle, "user.a") == "ENODATA"
        assert os.listxattr(handle) == []
    finally:
        os.close(handle)
