"""What programs do on the mount: shell tools, editors, git, tar, rsync, sqlite, random access."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest

from tests.mount.work import TREE, everyday_work, large_file, listing, names_of_all_kinds, run


def test_everyday_work(here: Path) -> None:
    everyday_work(here)


def test_a_large_file_comes_back(here: Path) -> None:
    large_file(here, 64)


def test_names_of_all_kinds(here: Path) -> None:
    names_of_all_kinds(here)
    with pytest.raises(OSError) as refused:
        (here / ("n" * 256)).touch()
    assert refused.value.errno == errno.ENAMETOOLONG


def test_git(here: Path) -> None:
    run(
        here,
        f"""
        git init -q one && cd one && git config user.email a@example.org && git config user.name A
        cp -r {TREE}/wire {TREE}/metaserver . && git add . && git commit -qm first
        echo change >> wire/errors.py && git commit -qam second && git checkout -qb side HEAD~1
        echo side > side.txt && git add . && git commit -qm third && git merge -q -m merge master || \
            git merge -q -m merge main
        git gc -q && git fsck --strict && test -z "$(git status --short)"
        cd .. && git clone -q one two && diff -r --exclude .git one two
        """,
    )


def test_archives_and_copies_keep_everything(here: Path) -> None:
    run(
        here,
        f"""
        mkdir from && cp -r {TREE}/wire from/ && ln from/wire/errors.py from/again && ln -s wire from/link
        chmod 750 from/wire && chmod 4711 from/wire/quorum.py && truncate -s 5M from/sparse
        touch -d '2001-02-03 04:05:06.123456789' from/wire/config.py && mkfifo from/pipe
        list() {{ (cd $1 && find . -printf '%P %m %n %s %T+ %l\\n' | grep -v '^ ' | sort) }}
        cp -a from copied
        tar --format=posix -cf all.tar from && mkdir untarred && tar xf all.tar -C untarred
        diff <(list from) <(list copied) && diff <(list from) <(list untarred/from)
        """,
    )


def test_rsync(here: Path) -> None:
    run(
        here,
        f"""
        rsync -aH {TREE}/wire/ to/ && diff -r {TREE}/wire to
        rsync -aHc --itemize-changes {TREE}/wire/ to/ > changes && test ! -s changes
        """,
    )


def test_an_editors_save(here: Path) -> None:
    """Write a new file beside, fsync, keep a backup by hard link, rename over, fsync the directory."""
    file = here / "text"
    file.write_text("old")
    reader = file.open()
    os.link(file, here / "text~")
    with (here / ".text.new").open("w") as new:
        new.write("new")
        new.flush()
        os.fsync(new.fileno())
    (here / ".text.new").rename(file)
    directory = os.open(here, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert file.read_text() == "new"
    assert (here / "text~").read_text() == "old"
    assert reader.read() == "old"
    reader.close()
    assert listing(here) == ["text", "text~"]


@pytest.mark.parametrize("mode", ["delete", "truncate", "wal"])
def test_sqlite(here: Path, mode: str) -> None:
    for attempt in range(2):
        database = sqlite3.connect(here / "db", isolation_level=None)
        assert database.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        database.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO t (v) VALUES (?)", [(os.urandom(500),) for _ in range(200)])
        database.execute("COMMIT")
        database.execute("BEGIN")
        database.execute("DELETE FROM t")
        database.execute("ROLLBACK")
        assert database.execute("SELECT count(*) FROM t").fetchone() == (200 * (attempt + 1),)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_access_is_what_a_local_file_says(here: Path, tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    tested, model = here / "tested", tmp_path / "model"
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in (tested, model)]
    for _ in range(400):
        place, size = dice.randrange(5 << 20), dice.choice([1, 4096, 100_000, 1 << 20])
        action = dice.randrange(10)
        if action < 4:
            data = dice.randbytes(size)
            assert {os.pwrite(file, data, place) for file in files} == {size}
        elif action < 8:
            ours, theirs = (os.pread(file, size, place) for file in files)
            assert ours == theirs
        elif action == 8 and dice.random() < 0.3:
            for file in files:
                os.ftruncate(file, place)
        elif dice.random() < 0.2:
            for file in files:
                os.close(file)
            files = [os.open(path, os.O_RDWR) for path in (tested, model)]
        elif dice.random() < 0.2:
            os.fsync(files[0])
            os.setxattr(tested, "user.quorumfs.drop_caches", b"")
        assert os.fstat(files[0]).st_size == os.fstat(files[1]).st_size
    for file in files:
        os.close(file)
    assert tested.read_bytes() == model.read_bytes()


def test_an_unlinked_open_file_lives_until_its_last_close(here: Path) -> None:
    with tempfile.TemporaryFile(dir=here) as file:
        file.write(b"x" * 3_000_000)
        file.flush()
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size) == (0, 3_000_000)
        os.fchmod(file.fileno(), 0o640)
        os.ftruncate(file.fileno(), 10)
        file.seek(0)
        assert file.read() == b"x" * 10
        assert listing(here) == []
    (here / "a").write_text("first")
    with (here / "a").open("r+") as first:
        (here / "b").write_text("second")
        (here / "b").rename(here / "a")
        assert first.read() == "first"
        assert os.fstat(first.fileno()).st_nlink == 0
    assert (here / "a").read_text() == "second"


def test_holes(here: Path) -> None:
    file = os.open(here / "sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(file, b"data", 50 << 20)
    for _ in range(2):
        assert os.lseek(file, 0, os.SEEK_DATA) == 50 << 20
        assert os.lseek(file, 0, os.SEEK_HOLE) == 0
        assert os.pread(file, 8, (50 << 20) - 4) == b"\0\0\0\0data"
        assert os.fstat(file).st_blocks * 512 < 1 << 20
        os.fsync(file)
    with pytest.raises(OSError) as refused:
        os.lseek(file, 60 << 20, os.SEEK_DATA)
    assert refused.value.errno == errno.ENXIO
    os.posix_fallocate(file, 0, 60 << 20)
    assert os.fstat(file).st_size == 60 << 20
    os.close(file)


def test_rename_flags(here: Path) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)

    def rename(old: Path, new: Path, flags: int) -> int:
        result = library.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
        return ctypes.get_errno() if result else 0

    (here / "a").write_text("A")
    (here / "b").write_text("B")
    assert rename(here / "a", here / "b", 1) == errno.EEXIST
    assert rename(here / "a", here / "b", 2) == 0
    assert ((here / "a").read_text(), (here / "b").read_text()) == ("B", "A")
    assert rename(here / "a", here / "c", 1) == 0
    assert listing(here) == ["b", "c"]


def test_times_now_and_omitted(here: Path) -> None:
    file = here / "a"
    file.touch()
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    run(here, "touch -a a")
    status = file.stat()
    assert status.st_mtime_ns == 2_000_000_002
    assert status.st_atime_ns > 1_700_000_000_000_000_000


def test_times_and_modes_set_while_writing_stand(here: Path) -> None:
    with (here / "a").open("wb") as file:
        file.write(b"x" * 100)
        file.flush()
        os.utime(file.fileno(), ns=(5, 7))
        os.fchmod(file.fileno(), 0o600)
    status = (here / "a").stat()
    assert (status.st_atime_ns, status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (5, 7, 0o600)


def test_extended_attributes(here: Path) -> None:
    file = here / "a"
    file.touch()
    os.setxattr(file, "user.one", b"1" * 10_000)
    os.setxattr(file, "user.two", b"")
    assert sorted(os.listxattr(file)) == ["user.one", "user.two"]
    assert os.getxattr(file, "user.one") == b"1" * 10_000
    with pytest.raises(OSError) as refused:
        os.setxattr(file, "user.one", b"", os.XATTR_CREATE)
    assert refused.value.errno == errno.EEXIST
    os.removexattr(file, "user.two")
    with pytest.raises(OSError) as refused:
        os.getxattr(file, "user.two")
    assert refused.value.errno == errno.ENODATA


def test_memory_maps(here: Path) -> None:
    file = os.open(here / "a", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 1_000_000)
    with mmap.mmap(file, 1_000_000) as view:
        view[500_000:500_004] = b"here"
        view.flush()
        assert os.pread(file, 6, 499_999) == b"\0here\0"
        view[0:5] = b"start"
    os.close(file)
    assert (here / "a").read_bytes()[:5] == b"start"
    with (here / "a").open("rb") as again, mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert view[500_000:500_004] == b"here"


def test_appends_of_two_handles_do_not_overwrite_each_other(here: Path) -> None:
    files = [os.open(here / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
    for number in range(200):
        os.write(files[number % 2], b"%d\n" % number)
    for file in files:
        os.close(file)
    assert (here / "log").read_text().split() == [str(number) for number in range(200)]


def test_appending_begins_and_ends_while_a_file_is_open(here: Path) -> None:
    file = os.open(here / "a", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(file, b"0123")
    fcntl.fcntl(file, fcntl.F_SETFL, 0)
    os.pwrite(file, b"ab", 0)
    assert os.pread(file, 10, 0) == b"ab23"
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, b"end")
    os.close(file)
    assert (here / "a").read_bytes() == b"ab23end"


def test_locks_of_this_mount(here: Path) -> None:
    with (here / "lock").open("w") as one, (here / "lock").open("w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_large_directory_can_be_emptied_while_it_is_read(here: Path) -> None:
    for number in range(2500):
        (here / f"{number:05}").touch()
    assert listing(here) == [f"{number:05}" for number in range(2500)]
    run(here, 'find . -type f -delete && test -z "$(ls -A)"')


def test_ordinary_users_are_held_to_the_permissions(here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    (here / "secret").write_text("s")
    (here / "secret").chmod(0o600)
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    run(
        here,
        """
        as_user() { setpriv --reuid 65534 --regid 65534 --clear-groups bash -c "$1"; }
        ! as_user 'cat secret' 2> /dev/null
        ! as_user 'touch new' 2> /dev/null
        as_user 'umask 027; echo mine > open/file'
        test "$(stat -c '%u %g %a' open/file)" = '65534 65534 640'
        """,
    )
